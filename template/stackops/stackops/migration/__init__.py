"""Moves MLflow's rows into this stack's PostgreSQL: `stackops migrate`.

`source`     what can be moved: a copy of a SQLite file, another PostgreSQL database, a backup made here
`prepare`    makes that copy, brings it to this MLflow version, renumbers, rewrites and repairs it
`hazards`    finds what PostgreSQL would refuse or change, before anything is written
`values`     one column of one batch of rows: as COPY text, and as the text that the checksum is made of
`catalogue`  what the target's tables are made of
`load`       everything into the target in one transaction
`verify`     are both sides the same
`pgloader`   the other engine, into a schema of its own that takes the tables' place once it is proved equal
`proof`      the moved data through MLflow's API

A source is never written. The target changes in one transaction or not at all.
"""
