# shellcheck shell=sh
# For the scripts that change what the stack holds, which read this file and have `die`: one at a time.

# lock NAME: returns when this script alone may go on; otherwise ends it with a sentence. The lock is a link to the number of
# the process that holds it; one that was killed holds nothing. What such a script calls in its turn knows by STACK_LOCK.
lock() {
  held=$(readlink .stack.lock) || held=
  if [ -n "$held" ]; then
    [ "${held%% *}" != "${STACK_LOCK:-}" ] || return 0
    case $(ps -p "${held%% *}" -o args= 2>/dev/null) in
      *scripts/*) die "'make ${held#* }' (process ${held%% *}) is at work: wait until it has ended" ;;
    esac
    rm -f .stack.lock
  fi
  ln -s "$$ $1" .stack.lock 2>/dev/null || die "another command is at work: wait until it has ended"
  export STACK_LOCK=$$
  holds_lock=yes
}

# unlock: gives it back, for the script's end.
unlock() {
  [ -z "${holds_lock:-}" ] || rm -f .stack.lock
}
