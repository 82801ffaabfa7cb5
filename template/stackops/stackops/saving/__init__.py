"""Backups: what one is made of, where it is kept, how it is made and loaded.

One backup is one set, a folder named after its time. Beside the sets is a pool of artifacts, each once,
named after its content; so what did not change is not copied again. Reading and writing the places where
both are kept is left to `artifacts_move`, so all of this runs in the image of `make artifacts-move`.

The database is the module that STACK_BACKEND names. Every one offers:

`snapshot(env, folder)`
    Writes the database as it is now into files in `folder`; returns a `manifest.Snapshot`. Raises StackError.
`occupied(env)`
    What the database holds besides a fresh stack's rows: table -> rows.
`load(env, folder, found, say)`
    Replaces the database by the files in `folder`, wholly or not at all; `found` is their manifest.
"""
