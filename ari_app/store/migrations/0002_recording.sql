-- Where the recording of a call is: a path on the worker's node, or a URL. Null: there is none.
ALTER TABLE calls ADD COLUMN recording text;
