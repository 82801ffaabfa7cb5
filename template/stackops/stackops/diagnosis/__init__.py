"""What `stackops doctor` looks at.

Each check is a function from facts to findings, and looks at nothing else. No finding means that all is well;
None means that this stack has nothing of the kind, or that nobody knows.
"""
