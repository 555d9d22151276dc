"""Following an account's log from outside: in a store, beside its servers, or through a running server."""
