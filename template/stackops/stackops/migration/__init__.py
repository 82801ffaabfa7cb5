"""Moves another MLflow's rows into this stack's database.

`files`      MLflow's databases as files, and what in a database is MLflow's
`prepare`    makes a copy of the source, brings it to this MLflow version, rewrites artifact locations in it
`report`     what was found, for a person and as JSON
`switches`   rows over which the server would not start

A source is never written. The target changes at one moment or not at all.
"""
