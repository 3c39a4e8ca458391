"""Where modules were in 0.1, for code that imports them from there. Gone in 0.3."""
