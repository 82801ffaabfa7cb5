"""What `stackops gc` is made of: which rows go (rows.py), whose a file in the store is (places.py), and the
removal that can be interrupted (removal.py)."""
