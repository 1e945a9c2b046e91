"""A call's life as rules: states, what moves a call between them, and what has to be done then. No IO."""
