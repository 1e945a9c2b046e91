"""Recording of calls: caller and application side by side, without the call ever waiting for a disk.

`timeline` and `wav` are pure; `recorder` collects on the event loop; `writer` is the thread that writes; `folder` keeps
the directory; `recordings` puts them together for a worker. docs/recording.md says what operators need.
"""
