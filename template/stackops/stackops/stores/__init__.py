"""Where the server keeps artifacts. STACK_STORE names the module that is used.

Every module offers the same functions:

`destination(env)`
    URI that the server itself reads and writes (MLflow's --artifacts-destination).
`environment(env, secrets)`
    Environment variables with which MLflow's client for this store finds its credentials.
`probe(env, name)`
    Writes, reads and deletes one small object called `name`; raises StackError with the cause.
`clock(env)` (optional)
    What the store's clock says, in seconds since 1970.
`ANY_ADDRESS` (optional)
    True if MLflow's client reaches this store by other addresses, too.
`settle()` (optional)
    Adjusts this process's client library before MLflow uses it.
`items(env, folder)`
    Every object below a folder of the root ("" or with a slash at its end): its path below the root, its
    size, and when it was written, in seconds since 1970. In any order; none where nothing is.
`remove(env, names)`
    Removes objects, at most 1000, by their paths below the root. One that is not there is fine.

A store elsewhere also offers what the streams of the server go through. All of it blocks, and raises what the
client library raises:

`Writer(uri)`
    One object that is being written: either `whole(file)`, or `part(file)` for each part in order and then
    `finish()`, or `abort()`. Nothing is there for readers before the end.
`read(uri, chunk)`
    The size of an object in bytes, and an iterator over its content.
`missing(error)`
    Whether an exception of the client library says that there is no such object.
"""
