"""The carrier and its callers: calls by SIPp, their audio by RTP endpoints of this process."""
