"""What `stackops doctor` looks at. Each check is a function from facts to findings; it reads nothing else."""
