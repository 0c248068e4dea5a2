"""The recipes that come with Espalier, as TOML files."""
