"""Programs: one for each published protocol."""
