"""Online: serves an artifact over HTTP."""
