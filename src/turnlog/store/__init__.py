"""Where everything recorded lives. ``protocol`` is the specification; each database has one file beside it."""
