"""Commands. They parse flags and call the library."""
