"""The command line: it gathers inputs, calls the library and shows the result."""
