"""What `stackops bench` is made of: what is measured (load.py), what is said about it (advice.py), and what
is looked at before and taken away afterwards, beside the server (around.py)."""
