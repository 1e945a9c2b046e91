"""Making, measuring, storing and drawing telephone audio. Independent of the media plane, which it measures."""
