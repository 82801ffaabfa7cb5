# shellcheck shell=sh
# For the scripts that change what the stack holds, which read this file and have `die`: one at a time.

# busy: succeeds, with its number and name in `held`, while another such script is at work. The lock is a link to the number of
# the process that holds it; one that was killed holds nothing. What such a script calls in its turn knows by STACK_LOCK.
busy() {
  held=$(readlink .stack.lock) || held=
  [ -n "$held" ] && [ "${held%% *}" != "${STACK_LOCK:-}" ] || return 1
  case $(ps -p "${held%% *}" -o args= 2>/dev/null) in *scripts/*) ;; *) return 1 ;; esac
}

# What is to be done about a restore that was interrupted; restore.sh leaves the file.
unfinished() {
  echo "a restore was interrupted: run 'make restore FROM=$(sed -n 's/^from=//p' .restore.unfinished) AT=$(sed -n 's/^at=//p' .restore.unfinished)' again, or delete .restore.unfinished to go on with the database as it is"
}

# lock NAME: returns when this script alone may go on; otherwise ends it with a sentence.
lock() {
  [ "$1" = restore ] || [ ! -e .restore.unfinished ] || [ -n "${STACK_LOCK:-}" ] || die "$(unfinished)"
  ! busy || die "'make ${held#* }' (process ${held%% *}) is at work: wait until it has ended"
  [ -z "$held" ] || [ "${held%% *}" != "${STACK_LOCK:-}" ] || return 0
  # A dead one's goes; if another command has put its own in that place meanwhile, it comes back.
  if [ -n "$held" ] && mv .stack.lock ".stack.lock.$$" 2>/dev/null; then
    [ "$(readlink ".stack.lock.$$")" = "$held" ] || mv ".stack.lock.$$" .stack.lock
    rm -f ".stack.lock.$$"
  fi
  ln -s "$$ $1" .stack.lock 2>/dev/null || die "another command is at work: wait until it has ended"
  export STACK_LOCK=$$
  holds_lock=yes
}

# unlock: gives it back, for the script's end.
unlock() {
  [ -z "${holds_lock:-}" ] || rm -f .stack.lock
}
