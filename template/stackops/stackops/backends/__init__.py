"""Where the server keeps runs, metrics and models. STACK_BACKEND names the module that is used.

Every module offers the same functions:

`uri(env)` and `accounts_uri(env)`
    SQLAlchemy URIs of the tracking data and of the user accounts. They hold no password.
`files(env, secrets)`
    Private files that the server needs, name -> text; they go into the runtime folder.
`max_workers(env, engines)`
    The most server processes this database can carry.
`environment(env, workers, engines)`
    Environment variables for the server.
`wait(env, seconds)`
    Returns when the database lets us in and may be used; raises StackError otherwise.
`vital_signs(env)`
    What `stackops doctor` wants to know of the database.
`size(env)`
    The size of the data in bytes.
`mark(env)`
    Something that differs after a schema change that failed half-way, if such a one leaves anything.
`engine(env)`
    A SQLAlchemy engine that keeps foreign keys and holds no connection that it does not use.
`REUSES_NUMBERS`
    Whether the number of the newest experiment is given again once its row is removed.
`outgrown(rows)`, `server_limit(env)` (optional)
    What to say when there are too many rows for it; how many connections the database lets in.
`exclusive(env)`
    Context manager: only one process at a time changes the schema.
"""
