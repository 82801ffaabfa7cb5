"""How a secret becomes a new one. scripts/rotate-secrets.sh names the module of each; rotate.py leads.

Every module may offer:

`propose(name, files)`
    Returns the new text. Those with `MADE_OF`, a kind, are made of secrets of that kind and come after them.
`switch(env, name, old, new)`
    Makes the rest of the stack accept the new text, and returns what it did. May run again, also after half
    of it was done. Those with `FIRST` come before all others.
`prove(env, name, old, new)`
    Raises StackError unless the new one is accepted and the old one is not.

`env` is the server's environment, with the secrets as they are now.
"""
