"""The embedded checkpoints and the code that trains them; the server imports none of it."""
