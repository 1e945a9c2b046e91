"""The words of a telephone call: ids, numbers, hangup causes and how a call ended. Pure: no IO, no clock."""
