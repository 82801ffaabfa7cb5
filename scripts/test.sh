#!/bin/sh
# Runs the tests two at a time: most of their time stacks wait for each other's parts. Those that bear no company come last.
#   test.sh [ARGUMENTS OF PYTEST]
chosen() {
  pytest "$@"
  result=$?
  [ "$result" -eq 5 ] || some=1
  [ "$result" -eq 0 ] || [ "$result" -eq 5 ] || failed=1 # 5: none of what was asked for is of this kind
}

some=0 failed=0
chosen -n 2 -m "not alone" "$@"
chosen -m alone "$@"
[ "$some" -eq 1 ] || exit 5
exit "$failed"
