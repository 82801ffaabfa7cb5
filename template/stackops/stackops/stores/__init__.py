"""Where the server keeps artifacts. STACK_STORE names the module that is used.

Every module offers the same functions:

`destination(env)`
    URI that the server itself reads and writes (MLflow's --artifacts-destination).
`environment(env, secrets)`
    Environment variables with which MLflow's client for this store finds its credentials.
`probe(env, name)`
    Writes, reads and deletes one small object called `name`; raises StackError with the cause.
`settle()` (optional)
    Adjusts this process's client library before MLflow uses it.
"""
