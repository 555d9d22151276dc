"""The command line: one file per group of commands; ``serve`` alone builds a server."""
