# shellcheck shell=sh disable=SC2317
# What Muster does on a machine that has only a POSIX shell, coreutils and tar (GNU's or busybox's).
#
# The server sends this text with the calls of one step below it. A step's input is its standard input, its output standard output and
# standard error, its result the exit status:
#
#   0  done          44  not found          45  denied          46  invalid          47  timed out          48  anything else
#
# With 44 to 48 the last line of standard error says why, in one line. Text that comes on standard input as "a list" is shell text made by
# the server: calls of the functions that the step names, each word in single quotes, at the end the line `end`. It is read from a file, so
# that neither names nor secrets are ever on a command line. Names that begin with `m_` are this file's own.

set -fu
unset CDPATH ENV BASH_ENV 2>/dev/null
LC_ALL=C
export LC_ALL
IFS=' 	
'
m_nl='
'
m_umask=$(umask)
m_temp_dir=''
m_step=''
m_beside=''

# --- shared with muster-poll: begin ---

# Reads what the kernel says of a process: m_state, m_ppid, m_sid, m_since. False if there is none.
m_stat() {
    m_text=
    # A process may have a newline in its name.
    while IFS= read -r m_line || [ -n "$m_line" ]; do m_text=$m_text$m_line; done 2>/dev/null <"/proc/$1/stat" || return 1
    case $m_text in *') '*) ;; *) return 1 ;; esac
    # shellcheck disable=SC2086
    set -- ${m_text##*') '}
    [ $# -ge 20 ] || return 1
    m_state=$1 m_ppid=$2 m_sid=$4
    shift 19
    m_since=$1
}

# Whether the process lives that a file names by its id and the time of its start; sets m_found. An id alone is used again.
m_alive() {
    m_found=0 m_found_since=0
    [ -f "$1" ] && read -r m_found m_found_since 2>/dev/null <"$1" || return 1
    case $m_found in '' | *[!0-9]*) return 1 ;; esac
    m_stat "$m_found" && [ "$m_since" = "$m_found_since" ] || return 1
    case $m_state in Z | X) return 1 ;; esac
}

# Which start of the machine it is, or of the container: m_boot.
m_read_boot() {
    m_boot='' m_since=0
    read -r m_boot 2>/dev/null </proc/sys/kernel/random/boot_id
    m_stat 1
    m_boot="$m_boot $m_since"
}

# Writes down this very process. `$$` would be the shell's, also in a subshell.
m_note_self() {
    read -r m_self m_line </proc/self/stat || return 1
    m_stat "$m_self" || return 1
    printf '%s %s\n' "$m_self" "$m_since" >"$1"
}

# Adds to m_set the processes that those in it started, and those of their sessions; sets m_living to those that have not ended.
m_members() {
    m_table=
    set +f
    for m_entry in /proc/[0-9]*; do
        m_entry=${m_entry#/proc/}
        m_stat "$m_entry" || continue
        case $m_state in Z | X) ;; *) m_table="$m_table $m_entry $m_ppid $m_sid" ;; esac
    done
    set -f
    m_grown=1
    while [ "$m_grown" = 1 ]; do
        m_grown=0 m_living=
        # shellcheck disable=SC2086
        set -- $m_table
        while [ $# -ge 3 ]; do
            case $m_set in
            *" $1 "*) m_living="$m_living $1" ;;
            *" $2 "*) m_set="$m_set$1 " m_grown=1 ;;
            # Only a process that leads its session has the session's number.
            *" $3 "*) m_set="$m_set$1 " m_grown=1 ;;
            esac
            shift 3
        done
    done
}

m_nap() {
    sleep 0.1 2>/dev/null || sleep 1
}

# Ends processes with all that they started: asks, waits for so many seconds, then kills. False if none lived.
m_end() {
    m_grace=$1
    shift
    m_set=" $* "
    m_members
    [ -n "$m_living" ] || return 1
    if [ "$m_grace" -gt 0 ]; then
        # shellcheck disable=SC2086
        kill -s TERM $m_living 2>/dev/null
        read -r m_until m_line </proc/uptime
        m_until=$((${m_until%.*} + m_grace))
        while [ -n "$m_living" ]; do
            m_nap
            m_members
            read -r m_now m_line </proc/uptime
            [ "${m_now%.*}" -lt "$m_until" ] || break
        done
    fi
    m_tries=0
    # What is started while the list is made is found in the next round.
    while [ -n "$m_living" ] && [ "$m_tries" -lt 50 ]; do
        # shellcheck disable=SC2086
        kill -s KILL $m_living 2>/dev/null
        m_members
        [ -z "$m_living" ] || m_nap
        m_tries=$((m_tries + 1))
    done
    return 0
}

# Ends a program that a file names, with its session. The leader may have ended and left others there: its id is not used again while they
# live. False if none lived.
m_end_noted() {
    [ -f "$2" ] && read -r m_found m_found_since 2>/dev/null <"$2" || return 1
    case $m_found in '' | *[!0-9]*) return 1 ;; esac
    if m_stat "$m_found" && [ "$m_since" != "$m_found_since" ]; then return 1; fi
    m_end "$1" "$m_found"
}

# Ends what was launched, its supervisor first, so that nothing is started again. Sets m_ran to whether the program ran.
m_stop_launched() {
    m_ran=no
    set +f
    for m_launch in "$1"/.muster/launch/*; do
        set -f
        [ -d "$m_launch" ] || continue
        # One that is just being started looks for this after it has written down its process.
        : >"$m_launch/stop"
        # After another start of the machine the numbers in it are those of others.
        m_read_boot
        if [ -f "$m_launch/boot" ] && IFS= read -r m_line <"$m_launch/boot" && [ "$m_line" = "$m_boot" ]; then
            # Not with what it started: the program has time to end by itself.
            if m_alive "$m_launch/supervisor"; then kill -s KILL "$m_found" 2>/dev/null; fi
            if m_end_noted 10 "$m_launch/program"; then m_ran=yes; fi
        fi
        # What writes the log ends when the program's output is closed.
        rm -rf -- "$m_launch"
    done
    set -f
}

# Ends a step that is under way, by its directory, with all that it started. False if nothing of it lived.
m_stop_step() {
    m_pids=
    for m_entry in program step; do
        m_alive "$1/$m_entry" && m_pids="$m_pids $m_found"
    done
    # shellcheck disable=SC2086
    [ -n "$m_pids" ] && m_end 0 $m_pids
    m_entry=$?
    rm -rf -- "$1"
    return "$m_entry"
}

# --- shared with muster-poll: end ---

# Ends the step: a status and why.
m_fail() {
    printf '\n%s\n' "$(printf '%s' "$2" | tr '\000-\037\177' ' ')" >&2
    exit "$1"
}

# The same for a program that failed: what it said, and where.
m_failed() {
    m_said=${1##*"$m_nl"}
    case $1 in
    *'ermission denied'* | *'not permitted'* | *'ead-only file system'*) m_fail 45 "\`$2\`: ${m_said:-denied}" ;;
    *'Not a directory'* | *'ile name too long'* | *'ymbolic links'*) m_fail 46 "\`$2\`: $m_said" ;;
    *) m_fail 48 "\`$2\`: ${m_said:-failed}" ;;
    esac
}

m_leave() {
    m_status=$?
    trap - EXIT
    m_drop_beside
    [ -z "$m_temp_dir" ] || rm -rf -- "$m_temp_dir"
    [ -z "$m_step" ] || rm -rf -- "$m_step"
    case $m_status in
    0 | 44 | 45 | 46 | 47 | 48) exit "$m_status" ;;
    *)
        printf '\nthe step ended with status %s\n' "$m_status" >&2
        exit 48
        ;;
    esac
}
trap m_leave EXIT
trap 'exit 48' HUP TERM

# Makes a path absolute: m_abs, without `.` and doubled slashes.
m_lexical() {
    [ -n "$2" ] || m_fail 46 'a path is empty'
    m_abs=
    case $2 in /*) m_text=$2 ;; *) m_text=$1/$2 ;; esac
    IFS=/
    for m_part in $m_text; do
        case $m_part in
        '' | .) ;;
        ..)
            m_fail 46 "path \`$2\`: it holds \`..\`"
            ;;
        *) m_abs=$m_abs/$m_part ;;
        esac
    done
    IFS=' 	
'
}

# Takes the root: m_lex as it was named, m_root where it is, m_own the agent's own directory. All without a slash at their end.
m_open() {
    case $1 in /*) ;; *) m_fail 46 "the root \`$1\` is not absolute" ;; esac
    m_lexical '' "$1"
    m_lex=$m_abs
    [ -d "$m_lex/" ] || m_said=$(mkdir -p -- "$m_lex" 2>&1) || m_failed "$m_said" "$m_lex"
    cd -P -- "$m_lex/" 2>/dev/null || m_fail 45 "\`$m_lex\` can not be entered"
    m_root=${PWD%/}
    m_own=$m_root/.muster
    [ ! -h "$m_own" ] || m_fail 45 "\`$m_own\` is a symlink"
    if [ ! -d "$m_own" ]; then
        m_said=$(umask 077 && mkdir -- "$m_own" 2>&1) || [ -d "$m_own" ] || m_failed "$m_said" "$m_own"
    fi
    umask 077
}

m_word() {
    case $1 in '' | .* | *[!A-Za-z0-9._-]*) m_fail 46 "\`$1\` is no name of a step or a state" ;; esac
}

m_number() {
    case $1 in '' | *[!0-9]*) m_fail 46 "\`$1\` is no number" ;; esac
}

m_octal() {
    case $1 in [0-7] | [0-7][0-7] | [0-7][0-7][0-7] | 0[0-7][0-7][0-7]) ;; *) m_fail 46 "\`$1\` is no mode" ;; esac
}

m_temp() {
    m_temp_dir=$m_own/tmp.$$
    rm -rf -- "$m_temp_dir"
    m_said=$(mkdir -- "$m_temp_dir" 2>&1) || m_failed "$m_said" "$m_temp_dir"
}

# Saves standard input to a file that must end with the line `end`: half a list is none.
m_save_list() {
    m_said=$(cat 2>&1 >"$1") || m_failed "$m_said" "$1"
    [ "$(tail -n 1 -- "$1")" = end ] || m_fail 48 'the input was cut off'
    m_whole=0
}

end() {
    m_whole=1
}

m_ended() {
    [ "$m_whole" = 1 ] || m_fail 48 'the input was not understood to its end'
}

m_is_own() {
    case $1/ in "$m_own"/*) return 0 ;; esac
    return 1
}

m_is_below() {
    case $1/ in "$m_root"/*) return 0 ;; esac
    return 1
}

# Whether m_abs lies below the root as it is written; m_below is the rest.
m_inside() {
    case $m_abs in
    "$m_lex"/*) m_below=${m_abs#"$m_lex"/} ;;
    "$m_lex") m_below= ;;
    *) return 1 ;;
    esac
}

# Where the working directory is: PWD. bash finds that out before it enters a directory, and somebody else could have moved it then.
m_where() {
    [ -n "${BASH_VERSION-}" ] || return 0
    PWD=$(readlink /proc/self/cwd && printf x)
    PWD=${PWD%"${m_nl}x"}
}

# Why a directory can not be entered: 44, 45 or 46.
m_why() {
    m_why_at=
    IFS=/
    for m_part in $1; do
        IFS=' 	
'
        [ -n "$m_part" ] || continue
        m_why_at=$m_why_at/$m_part
        if [ -d "$m_why_at" ]; then
            [ -x "$m_why_at" ] || return 45
        elif [ -e "$m_why_at" ]; then
            return 46
        else
            return 44
        fi
    done
    IFS=' 	
'
    return 48
}

# Enters the directory of m_abs, and sets m_name to its last name. Below the root, no symlink may lead out of it; `make` makes what lacks.
m_enter_parent() {
    m_name=${m_abs##*/}
    if ! m_inside; then
        cd -P -- "${m_abs%/*}/" 2>/dev/null && return
        m_why "${m_abs%/*}"
        m_fail $? "\`$m_abs\`"
    fi
    cd -P -- "$m_root/" || m_fail 48 "\`$m_root\` can not be entered"
    case $m_below in */*) m_text=${m_below%/*} ;; *) m_text= ;; esac
    IFS=/
    for m_part in $m_text; do
        IFS=' 	
'
        if ! cd -P -- "./$m_part" 2>/dev/null; then
            if [ -d "./$m_part" ]; then m_fail 45 "\`$m_abs\`: \`$m_part\` can not be entered"; fi
            if [ -e "./$m_part" ]; then m_fail 46 "\`$m_abs\`: \`$m_part\` is no directory"; fi
            if [ "$1" != make ]; then m_fail 44 "\`$m_abs\`"; fi
            if [ -h "./$m_part" ]; then m_fail 46 "\`$m_abs\`: \`$m_part\` is a symlink that leads nowhere"; fi
            m_said=$(umask "$m_umask" && mkdir -- "./$m_part" 2>&1) || [ -d "./$m_part" ] || m_failed "$m_said" "$m_abs"
            cd -P -- "./$m_part" 2>/dev/null || m_fail 45 "\`$m_abs\`: \`$m_part\` can not be entered"
        fi
        m_where
        m_is_below "$PWD" || m_fail 45 "\`$m_abs\` leads out of the root \`$m_lex\`"
        if m_is_own "$PWD"; then m_fail 45 "\`$m_abs\` is the agent's own"; fi
    done
    IFS=' 	
'
    if m_is_own "${PWD%/}/$m_name"; then m_fail 45 "\`$m_abs\` is the agent's own"; fi
}

# --- steps ---

# muster_begin ROOT ID: before another step, so that it can be cancelled by its id.
muster_begin() {
    m_open "$1"
    m_word "$2"
    [ -d "$m_own/steps" ] || mkdir -p -- "$m_own/steps" || m_fail 48 "\`$m_own/steps\` can not be made"
    mkdir -- "$m_own/steps/$2" 2>/dev/null || m_fail 48 "there is a step \`$2\` already, or \`$m_own/steps\` can not be written"
    m_step=$m_own/steps/$2
    m_note_self "$m_step/step" || m_fail 48 "\`$m_step\` can not be written"
}

# muster_cancel ROOT ID: ends a step that is under way, with all that it started. Prints `yes`, or `no` if there was none.
muster_cancel() {
    m_open "$1"
    m_word "$2"
    if m_stop_step "$m_own/steps/$2"; then echo yes; else echo no; fi
}

# muster_sweep ROOT: ends all other steps that are under way still, of a link that was lost, and clears away what killed ones left.
muster_sweep() {
    m_open "$1"
    set +f
    for m_dir in "$m_own"/steps/*; do
        if [ -d "$m_dir" ] && [ "$m_dir" != "$m_step" ]; then m_stop_step "$m_dir"; fi
        set +f
    done
    for m_dir in "$m_own"/tmp.*; do
        m_entry=${m_dir##*.}
        if [ -d "$m_dir" ] && [ ! -d "/proc/$m_entry" ]; then rm -rf -- "$m_dir"; fi
    done
    set -f
}

# muster_boot: prints which start of the machine it is, or of the container, on one line.
muster_boot() {
    m_read_boot
    printf 'boot %s\n' "$m_boot"
}

# muster_lacks: prints what steps need and is not on this machine, a word on a line.
muster_lacks() {
    for m_part in cat chmod cut date dd env head id ln mkdir mktemp mv od readlink rm rmdir sha256sum sleep stat tail tar touch tr wc; do
        command -v "$m_part" >/dev/null 2>&1 || printf '%s\n' "$m_part"
    done
    [ -r /proc/self/stat ] || echo /proc
}

# What starts a program: the text of a shell of its own, since `setsid` takes only programs. Its parameters: the file that says why nothing
# was started, the file for the process, one that is there if it is not to be started (or nothing), the list, `keep` or `remove` for that,
# the root, where to start, and the umask. The list is one call, so that it is read whole before anything is done: muster_program, the
# number of variables, their names and values, the program, its arguments.
# shellcheck disable=SC2016
m_child='
set -fu
umask 077
LC_ALL=C
muster_why=$1 muster_what="the program" muster_list=$4 muster_kept=$5 muster_root=$6 muster_dir=$7 muster_umask=$8
muster_refuse() {
    trap - EXIT
    printf "%s %s\n" "$1" "$2" >"$muster_why"
    exit "$1"
}
muster_not_started() {
    case $? in
    127) muster_refuse 44 "\`$muster_what\`, or the interpreter or loader that it names" ;;
    *) muster_refuse 46 "\`$muster_what\` can not be started" ;;
    esac
}
trap muster_not_started EXIT
muster_note() {
    read -r muster_text </proc/self/stat
    muster_file=$1
    set -- ${muster_text##*") "}
    shift 19
    printf "%s %s\n" "$$" "$1" >"$muster_file"
}
# Noted first, then the look at the order to stop; who gives that looks at the note afterwards. So one sees the other.
muster_note "$2" && [ ! -e "$3" ] || exit 48
muster_check() {
    case $muster_what in
    /*) ;;
    */*) muster_what=$muster_root/$muster_what ;;
    *) muster_refuse 46 "a program is a path with a \`/\` in it: \`$muster_what\` is not one" ;;
    esac
    [ -e "$muster_what" ] || muster_refuse 44 "\`$muster_what\`"
    [ -f "$muster_what" ] && [ -x "$muster_what" ] || muster_refuse 45 "\`$muster_what\` is not executable for this user"
    [ -r "$muster_what" ] || return 0
    # A shell would run a file without a known format as a script of its own.
    case $(head -c 4 -- "$muster_what" | od -An -v -tx1 | tr -d " \n") in
    2321*)
        read -r muster_text <"$muster_what"
        muster_text=${muster_text#"#!"}
        set -- $muster_text
        [ $# -gt 0 ] && [ -e "$1" ] || muster_refuse 44 "\`$muster_what\`, or the interpreter that it names"
        ;;
    7f454c46 | cffaedfe | cefaedfe | cafebabe) ;;
    *) muster_refuse 46 "\`$muster_what\` is no program: it has neither a known format nor a \`#!\` line" ;;
    esac
}
muster_program() {
    [ "$muster_kept" = keep ] || rm -f -- "$muster_list"
    muster_count=$1 muster_n=0
    shift
    for muster_word do
        if [ "$muster_n" -eq "$((muster_count * 2))" ]; then
            muster_what=$muster_word
            break
        fi
        if [ "$((muster_n % 2))" -eq 0 ]; then
            case $muster_word in
            # Harmless, and meant for others.
            BASH_ENV) ;;
            # Some shell gives these a meaning. What is assigned to one that it takes for a number, it calculates, and that runs commands.
            "" | [0-9]* | *[!A-Za-z0-9_]* | muster_* | BASHOPTS | BASHPID | BASH_* | COMP_* | COPROC | DIRSTACK | EGID | EPOCHREALTIME | \
                EPOCHSECONDS | ERRNO | EUID | FUNCNAME | FUNCNEST | GID | GROUPS | HISTCMD | IFS | KSHEGID | KSHEUID | KSHGID | KSHUID | \
                LINENO | MAPFILE | OPTARG | OPTERR | OPTIND | PGRP | PIPESTATUS | PPID | PS[1-4] | RANDOM | READLINE_* | REPLY | SECONDS | \
                SHELLOPTS | SRANDOM | TMOUT | UID | USER_ID)
                muster_refuse 46 "a shell can not set a variable \`$muster_word\`"
                ;;
            esac
        fi
        muster_n=$((muster_n + 1))
    done
    muster_check
    : >"$muster_why.checked"
    umask "$muster_umask"
    muster_env=
    if [ -n "${BASH_VERSION-}" ]; then
        # bash gives SHLVL and _ to what it starts even if they are not set.
        muster_env=$(command -v env)
        case $muster_what in *=*) muster_env= ;; esac
        shopt -s execfail
    fi
    # No other program is called from here on: what is set now would be set for it.
    unset PWD OLDPWD SHLVL
    while [ "$muster_count" -gt 0 ]; do
        # Then nothing counts any more that the shell held of it: that it is a number, say.
        unset -v "$1"
        export "$1=$2"
        shift 2
        muster_count=$((muster_count - 1))
    done
    shift
    if [ -n "$muster_env" ]; then
        exec "$muster_env" -u _ -u SHLVL "$muster_what" "$@"
    else
        exec "$muster_what" "$@"
    fi
    muster_not_started
}
[ -d "$muster_dir" ] || { [ -e "$muster_dir" ] && muster_refuse 46 "\`$muster_dir\` is no directory"; muster_refuse 44 "\`$muster_dir\`"; }
cd -- "$muster_dir/" || muster_refuse 45 "\`$muster_dir\` can not be entered"
. "$muster_list"
exit 46
'

# Runs a shell text in a session of its own, if the machine can, with the few variables that programs get. Its standard error is 7, and set
# in a subshell: on its own standard error this shell says how a program was killed.
m_in_session() {
    m_sh=$(command -v sh)
    if command -v setsid >/dev/null 2>&1; then set -- setsid "$m_sh" -c "$@"; else set -- "$m_sh" -c "$@"; fi
    [ -z "${USER+set}" ] || set -- "USER=$USER" "$@"
    [ -z "${LANG+set}" ] || set -- "LANG=$LANG" "$@"
    [ -z "${HOME+set}" ] || set -- "HOME=$HOME" "$@"
    (exec 2>&7 7>&- && exec env -i "PATH=$PATH" "$@")
}

# Saves a program's input: `LIST_BYTES INPUT_BYTES` on a line, the list, the program's standard input.
m_save_program() {
    m_said=$(cat 2>&1 >"$1/all") || m_failed "$m_said" "$1"
    read -r m_list_bytes m_input_bytes <"$1/all" || m_fail 48 'the input was cut off'
    m_number "$m_list_bytes"
    m_number "$m_input_bytes"
    m_head=$((${#m_list_bytes} + ${#m_input_bytes} + 2))
    [ "$(stat -c %s -- "$1/all")" -eq "$((m_head + m_list_bytes + m_input_bytes))" ] || m_fail 48 'the input was cut off'
    m_said=$({ tail -c "+$((m_head + 1))" -- "$1/all" | head -c "$m_list_bytes"; } 2>&1 >"$1/list") || m_failed "$m_said" "$1"
    m_said=$(tail -c "+$((m_head + m_list_bytes + 1))" -- "$1/all" 2>&1 >"$1/input") || m_failed "$m_said" "$1"
    rm -f -- "$1/all"
}

# Takes a program's directory: m_dir.
m_start_dir() {
    m_lexical "$m_lex" "${1:-$m_lex}"
    m_dir=$m_abs
}

# Passes on at most so many bytes as they come, and throws away the rest: then the file is there.
m_drain() {
    if [ "$1" = err ]; then exec >&4; else exec >&6; fi
    exec 4>&- 5>&- 6>&-
    m_note_self "$m_step/drain.$1"
    # Larger blocks would be counted, not bytes, when they come in pieces; `head` holds back what it has read.
    dd bs=1 count="$2" 2>/dev/null
    m_rest=$(wc -c)
    [ "${m_rest:-0}" -eq 0 ] || : >"$m_step/over"
}

# In the foreground: a shell without job control has what it starts in the background ignore SIGINT for ever.
m_run() {
    # With `exec` throughout: what a redirection saves for later is held open by all that is forked meanwhile.
    exec 2>&1 >&5 4>&- 5>&- 6>&-
    exec 7>&2 2>/dev/null
    m_in_session "$m_child" sh "$m_step/why" "$m_step/program" '' "$m_step/list" remove "$m_lex" "$m_dir" "$m_umask" \
        <"$m_step/input"
    printf '%s\n' "$?" >"$m_step/status"
    exec 7>&-
    m_linger &
    m_stat "$!" && printf '%s %s\n' "$!" "$m_since" >"$m_step/linger"
}

# What the program left behind and what keeps its output open is ended a second later; a service that closed it is let alone.
m_linger() {
    exec </dev/null >/dev/null 2>&1
    sleep 1
    # With the first of them the step's own end comes, and it would end this before the last.
    trap '' TERM
    m_end_noted 0 "$m_step/program"
    m_nap
    # Who left the session may keep the output open as long as it likes.
    for m_part in out err; do
        m_alive "$m_step/drain.$m_part" && m_end 0 "$m_found"
    done
}

m_limit() {
    exec </dev/null >/dev/null 2>&1
    trap 'kill "$m_sleep" 2>/dev/null; exit 0' TERM
    m_ms=00$(($1 % 1000))
    sleep "$(($1 / 1000)).${m_ms#"${m_ms%???}"}" &
    m_sleep=$!
    if ! wait "$m_sleep"; then
        # This machine's `sleep` knows whole seconds alone.
        sleep "$(($1 / 1000 + 1))" &
        m_sleep=$!
        wait "$m_sleep"
    fi
    trap '' TERM
    : >"$m_step/late"
    while [ ! -s "$m_step/program" ] && [ ! -e "$m_step/status" ] && [ -d "$m_step" ]; do m_nap; done
    m_end_noted 0 "$m_step/program"
}

# muster_exec ID ROOT DIR TIMEOUT_MS OUT_MAX: runs a program to its end. What it wrote is followed by the very last line of standard error,
# `MUSTER-EXIT STATUS TRUNCATED`, after a newline that does not belong to the output.
muster_exec() {
    muster_begin "$2" "$1"
    m_number "$4"
    m_number "$5"
    m_start_dir "$3"
    m_save_program "$m_step"
    if [ "$4" -gt 0 ]; then
        m_limit "$4" &
        m_stat "$!" && printf '%s %s\n' "$!" "$m_since" >"$m_step/limit"
    fi
    exec 4>&2 6>&1
    {
        { m_run | m_drain err "$5"; } 5>&1 | m_drain out "$5"
    } 2>/dev/null
    exec 4>&- 6>&-
    for m_part in limit linger; do
        if m_alive "$m_step/$m_part"; then kill "$m_found" 2>/dev/null; fi
    done
    [ ! -e "$m_step/late" ] || m_fail 47 "it was ended after $4 ms"
    m_why_not "$m_step"
    [ -s "$m_step/status" ] || m_fail 48 'the step was ended'
    read -r m_part <"$m_step/status"
    m_over=0
    [ ! -e "$m_step/over" ] || m_over=1
    printf '\nMUSTER-EXIT %s %s\n' "$m_part" "$m_over" >&2
}

# Fails if a program was not started, as it was written down.
m_why_not() {
    [ -e "$1/why" ] || return 0
    m_said=$(cat -- "$1/why")
    m_number "${m_said%% *}"
    m_fail "${m_said%% *}" "${m_said#* }"
}

# muster_read ROOT PATH MAX: a regular file, to standard output.
muster_read() {
    m_open "$1"
    m_number "$3"
    m_lexical "$m_lex" "$2"
    m_enter_parent look
    m_hops=0
    while [ -h "./$m_name" ]; do
        m_hops=$((m_hops + 1))
        [ "$m_hops" -le 40 ] || m_fail 46 "\`$m_abs\`: too many symlinks"
        m_text=$(readlink -- "./$m_name" && printf x)
        m_text=${m_text%"${m_nl}x"}
        case $m_text in
        /*) m_dir=${m_text%/*}/ ;;
        */*) m_dir=./${m_text%/*}/ ;;
        *) m_dir=./ ;;
        esac
        m_name=${m_text##*/}
        if ! cd -P -- "$m_dir" 2>/dev/null; then
            m_why "${m_dir#.}"
            m_status=$?
            [ "$m_status" = 48 ] && m_status=44
            m_fail "$m_status" "\`$m_abs\` leads to \`$m_text\`"
        fi
        m_where
    done
    if m_is_own "${PWD%/}/$m_name"; then m_fail 45 "\`$m_abs\` leads to what is the agent's own"; fi
    if m_inside; then
        m_is_below "$PWD" || m_fail 45 "\`$m_abs\` leads out of the root \`$m_lex\`"
    elif m_is_below "$PWD"; then
        m_fail 45 "\`$m_abs\` leads back into the root \`$m_lex\`"
    fi
    if [ -e "./$m_name" ]; then
        if [ -z "$m_name" ] || [ ! -f "./$m_name" ]; then m_fail 46 "\`$m_abs\` is no regular file"; fi
    else
        [ -x . ] || m_fail 45 "\`$m_abs\`"
        m_fail 44 "\`$m_abs\`"
    fi
    [ -r "./$m_name" ] || m_fail 45 "\`$m_abs\` can not be read"
    [ "$(stat -c %s -- "./$m_name")" -le "$3" ] || m_fail 46 "\`$m_abs\` has more than $3 bytes"
    # One more tells that there is more: files of the kernel do not say how large they are.
    head -c "$(($3 + 1))" -- "./$m_name" || m_fail 48 "\`$m_abs\` can not be read"
}

# muster_exists ROOT PATH: prints `yes` or `no`; a symlink is something, wherever it leads.
muster_exists() {
    m_open "$1"
    m_lexical "$m_lex" "$2"
    if [ "$m_abs" = / ] || [ "$m_abs" = "$m_lex" ]; then
        echo yes
        return
    fi
    # In a subshell, since a missing directory on the way is an answer here.
    m_said=$(m_enter_parent look 2>&1
        if [ -e "./$m_name" ] || [ -h "./$m_name" ]; then echo yes; elif [ -x . ]; then echo no; else m_fail 45 "\`$m_abs\`" 2>&1; fi)
    case $? in
    0) printf '%s\n' "$m_said" ;;
    44 | 46) echo no ;;
    *) m_fail "$?" "${m_said##*"$m_nl"}" ;;
    esac
}

# muster_write ROOT PATH MODE SHA256 BYTES: standard input becomes the file, whole or not at all. Prints `changed` or `same`.
muster_write() {
    m_open "$1"
    m_octal "$3"
    m_number "$5"
    m_lexical "$m_lex" "$2"
    m_inside || m_fail 45 "\`$m_abs\` lies outside of the root \`$m_lex\`"
    [ -n "$m_below" ] || m_fail 46 "\`$m_abs\` is a directory"
    m_enter_parent make
    m_into=.
    if [ ! -h "./$m_name" ]; then
        [ ! -d "./$m_name" ] || m_fail 46 "\`$m_abs\` is a directory"
        if [ -f "./$m_name" ] && [ -r "./$m_name" ]; then
            m_text=$(stat -c '%s %a' -- "./$m_name")
            # As numbers: a mode has zeros before it or not.
            if [ "${m_text% *}" = "$5" ] && [ "$((0${m_text#* }))" = "$((0$3))" ]; then
                m_text=$(sha256sum <"./$m_name")
                if [ "${m_text%% *}" = "$4" ]; then
                    cat >/dev/null
                    echo same
                    return
                fi
            fi
        fi
    fi
    # Not where others may write: they could put something else in its place.
    m_temp
    m_new_dir=$m_temp_dir
    # A file that is made below a directory with this bit gets its group.
    if [ -g . ] || [ "$(stat -c %d -- "$m_temp_dir")" != "$(stat -c %d .)" ]; then m_beside; fi
    m_new=$m_new_dir/new
    m_said=$(cat 2>&1 >"$m_new") || m_drop_new "$m_said"
    [ "$(stat -c %s -- "$m_new")" = "$5" ] || m_drop_new 'the input was cut off'
    m_text=$(sha256sum <"$m_new")
    [ "${m_text%% *}" = "$4" ] || m_drop_new 'what came is not what was sent'
    m_said=$(chmod -- "$3" "$m_new" 2>&1) || m_drop_new "$m_said"
    m_sync "$m_new"
    # What leads to a directory would be taken for it.
    if [ -h "$m_into/$m_name" ] && [ -d "$m_into/$m_name" ]; then rm -f -- "$m_into/$m_name"; fi
    [ ! -d "$m_into/$m_name" ] || m_drop_new 'Not a directory: it is one now'
    m_said=$(m_rename "$m_new" "$m_into/$m_name") || m_drop_new "$m_said"
    m_drop_beside
    m_sync .
    echo changed
}

# On another file system, say: a directory of its own in the one that was entered, which stays at hand as 9. Nobody else gets into it,
# whatever becomes of its name.
m_beside() {
    # What was killed could not remove its own.
    set +f
    for m_entry in ./.muster-new.*.*; do
        m_part=${m_entry#./.muster-new.}
        m_part=${m_part%.*}
        case $m_part in '' | *[!0-9]*) continue ;; esac
        if [ ! -d "/proc/$m_part" ]; then rm -rf -- "$m_entry"; fi
    done
    set -f
    m_new_dir=$(mktemp -d "./.muster-new.$$.XXXXXX" 2>&1) || m_failed "$m_new_dir" "$m_abs"
    m_beside=./${m_new_dir##*/}
    m_into=/proc/self/fd/9
    exec 9<.
    cd -P -- "$m_beside" || m_drop_new 'it was changed by somebody else meanwhile'
    case $(stat -c '%a %u' .) in
    "700 $(id -u)" | "2700 $(id -u)") ;;
    *) m_drop_new 'it was changed by somebody else meanwhile' ;;
    esac
    m_new_dir=.
}

m_drop_beside() {
    [ -n "$m_beside" ] || return 0
    [ "$m_new_dir" != . ] || rm -f -- ./new
    if cd /proc/self/fd/9 2>/dev/null; then rmdir -- "$m_beside" 2>/dev/null; fi
    exec 9<&-
    m_beside=
}

# Renames; what is there is replaced, also if it has become a symlink to a directory meanwhile.
m_rename() {
    m_said=$(mv -f -T -- "$1" "$2" 2>&1) && return
    case $m_said in
    # This machine's `mv` does not know `-T`.
    *'invalid option'* | *'unrecognized option'*) mv -f -- "$1" "$2" 2>&1 ;;
    *)
        printf '%s' "$m_said"
        return 1
        ;;
    esac
}

m_drop_new() {
    m_drop_beside
    m_failed "$1" "$m_abs"
}

# Brings a file to the disk, as far as this machine can.
m_sync() {
    sync -- "$@" 2>/dev/null || sync 2>/dev/null || :
}

# muster_remove ROOT PATH WITH_BELOW: prints `removed N`, of files and symlinks; `absent` if there was nothing.
muster_remove() {
    m_open "$1"
    m_lexical "$m_lex" "$2"
    m_inside || m_fail 45 "\`$m_abs\` lies outside of the root \`$m_lex\`"
    [ -n "$m_below" ] || m_fail 45 "\`$m_abs\` itself can not be removed, only what is below it"
    m_said=$(m_enter_parent look 2>&1)
    case $? in
    0) ;;
    44 | 46)
        echo absent
        return
        ;;
    *) m_fail "$?" "${m_said##*"$m_nl"}" ;;
    esac
    m_enter_parent look
    m_count=0
    if [ -d "./$m_name" ] && [ ! -h "./$m_name" ]; then
        case $m_own/ in "${PWD%/}/$m_name"/*) m_fail 45 "\`$m_abs\` holds the agent's own directory" ;; esac
        if [ "$3" = 1 ]; then
            m_count_below "./$m_name"
            m_said=$(rm -rf -- "./$m_name" 2>&1) || m_failed "$m_said" "$m_abs"
        else
            m_said=$(rmdir -- "./$m_name" 2>&1) || {
                case $m_said in
                *'ot empty'*)
                    m_fail 45 "\`$m_abs\` is a directory that is not empty; \`grants.write\` has to cover \`$m_abs/**\` for all of it to be removed"
                    ;;
                esac
                m_failed "$m_said" "$m_abs"
            }
        fi
    elif [ -e "./$m_name" ] || [ -h "./$m_name" ]; then
        m_said=$(rm -f -- "./$m_name" 2>&1) || m_failed "$m_said" "$m_abs"
        m_count=1
    else
        echo absent
        return
    fi
    printf 'removed %s\n' "$m_count"
}

m_count_below() {
    set +f
    for m_entry in "$1"/* "$1"/.[!.]* "$1"/..?*; do
        if [ -h "$m_entry" ]; then
            m_count=$((m_count + 1))
        elif [ -d "$m_entry" ]; then
            m_count_below "$m_entry"
        elif [ -e "$m_entry" ]; then
            m_count=$((m_count + 1))
        fi
    done
    set -f
}

# --- bringing a tree ---
#
# All of a tree's paths are relative to DEST. What is sent for it is gathered in ROOT/.muster/shell/KEY/in/VERSION: below `t` the tree's
# files at their own paths, with their modes and times, and below `c` pieces of large files, by number. VERSION names the tree that is being
# brought, so that what was left of another one is never taken for it. Words with many names in a list are made for speed: about 500 names
# or 64 KiB at a time.

# Takes a destination: m_dest, where it is; m_there, whether it is; the working directory, if it is.
m_destination() {
    m_lexical "$m_lex" "$1"
    m_inside || m_fail 45 "\`$m_abs\` lies outside of the root \`$m_lex\`"
    m_there=1
    m_dest=$m_root
    cd -P -- "$m_root/" || m_fail 48 "\`$m_root\` can not be entered"
    IFS=/
    for m_part in $m_below; do
        IFS=' 	
'
        m_dest=$m_dest/$m_part
        [ "$m_there" = 1 ] || continue
        if [ -h "./$m_part" ]; then m_fail 45 "\`$m_dest\` is a symlink"; fi
        if [ ! -e "./$m_part" ]; then
            m_there=0
            continue
        fi
        [ -d "./$m_part" ] || m_fail 46 "\`$m_dest\` is no directory"
        cd -P -- "./$m_part" 2>/dev/null || m_fail 45 "\`$m_dest\` can not be entered"
        m_where
        [ "$PWD" = "$m_dest" ] || m_fail 45 "\`$m_dest\` is not where it was"
    done
    IFS=' 	
'
    if m_is_own "$m_dest"; then m_fail 45 "\`$m_dest\` is the agent's own"; fi
}

# Whether every directory of a path is one: m_way is `ok`, `absent`, or `x` for a symlink or something else. The last answer is kept.
m_look_way() {
    m_way_dir=$1 m_way=ok m_at=
    IFS=/
    for m_part in $1; do
        m_at=$m_at$m_part
        if [ -h "$m_at" ]; then m_way=x; elif [ -d "$m_at" ]; then :; elif [ -e "$m_at" ]; then m_way=x; else m_way=absent; fi
        [ "$m_way" = ok ] || break
        m_at=$m_at/
    done
    IFS=' 	
'
}

# Prints text of any bytes on one line: `=` and itself if it is plain, else in hexadecimal.
m_encode() {
    case $1 in
    *[!A-Za-z0-9._/@%+:,~=-]*) printf '%s\n' "$(printf '%s' "$1" | od -An -v -tx1 | tr -d ' \n')" ;;
    *) printf '=%s\n' "$1" ;;
    esac
}

# muster_look ROOT DEST ALL: what is at the paths of a list of `p PATH...`. At first a line `there NOW` or `absent NOW`, of DEST itself, with
# the time in seconds since 1970. Then one line for each, in order: `-` if nothing is there, `x` if something on its way is no directory,
# `l TARGET` for a symlink, else `MODE SIZE MTIME CTIME INODE`, the mode raw and in hexadecimal. With ALL=1 then `all`, and a line `d PATH`,
# `f PATH`, `l PATH` or `o PATH` for everything below DEST; at last a line `end`.
muster_look() {
    m_open "$1"
    m_temp
    m_save_list "$m_temp_dir/list"
    m_destination "$2"
    if [ "$m_there" = 1 ]; then m_text=there; else m_text=absent; fi
    printf '%s %s\n' "$m_text" "$(date +%s)"
    m_way_dir='' m_way=ok
    p() { m_look "$@"; }
    # shellcheck disable=SC1091
    . "$m_temp_dir/list"
    m_ended
    if [ "$3" = 1 ]; then
        echo all
        if [ "$m_there" = 1 ]; then m_list_below ''; fi
    fi
    echo end
}

m_look() {
    if [ "$m_there" = 0 ]; then
        for m_path do echo -; done
        return
    fi
    m_plain=1
    for m_path do
        case $m_path in */*) m_dir=${m_path%/*} ;; *) m_dir='' ;; esac
        [ "$m_dir" = "$m_way_dir" ] || m_look_way "$m_dir"
        # `-` would be standard input.
        if [ "$m_way" != ok ] || [ -h "$m_path" ] || [ ! -e "$m_path" ] || [ "$m_path" = - ]; then
            m_plain=0
            break
        fi
    done
    if [ "$m_plain" = 1 ]; then
        stat -c '%f %s %Y %Z %i' -- "$@" || m_fail 48 "\`$m_dest\` was changed meanwhile"
        return
    fi
    # What is special gets its line at once, the rest is looked at together and put in its place.
    for m_path do
        shift
        case $m_path in */*) m_dir=${m_path%/*} ;; *) m_dir='' ;; esac
        [ "$m_dir" = "$m_way_dir" ] || m_look_way "$m_dir"
        if [ "$m_way" = x ]; then
            echo x
        elif [ "$m_way" = absent ]; then
            echo -
        elif [ -h "$m_path" ]; then
            m_text=$(readlink -- "$m_path" && printf x)
            printf 'l %s\n' "$(m_encode "${m_text%"${m_nl}x"}")"
        elif [ -e "$m_path" ]; then
            echo s
            [ "$m_path" = - ] && m_path=./-
            set -- "$@" "$m_path"
        else
            echo -
        fi
    done >"$m_temp_dir/marks"
    : >"$m_temp_dir/stats"
    if [ $# -gt 0 ]; then
        stat -c '%f %s %Y %Z %i' -- "$@" >"$m_temp_dir/stats" || m_fail 48 "\`$m_dest\` was changed meanwhile"
    fi
    m_merge
}

# Prints marks, and for each `s` the next line of what was found out together.
m_merge() {
    while IFS= read -r m_line; do
        if [ "$m_line" = s ]; then IFS= read -r m_line <&9; fi
        printf '%s\n' "$m_line"
    done <"$m_temp_dir/marks" 9<"$m_temp_dir/stats"
}

m_list_below() {
    set +f
    for m_entry in "$1"* "$1".[!.]* "$1"..?*; do
        # A pattern that nothing matches stays as it is.
        if [ -h "$m_entry" ]; then
            printf 'l '
            m_encode "$m_entry"
        elif [ -d "$m_entry" ]; then
            [ "$m_dest/$m_entry" != "$m_own" ] || continue
            printf 'd '
            m_encode "$m_entry"
            m_list_below "$m_entry/"
        elif [ -f "$m_entry" ]; then
            printf 'f '
            m_encode "$m_entry"
        elif [ -e "$m_entry" ]; then
            printf 'o '
            m_encode "$m_entry"
        fi
    done
    set -f
}

# muster_hash ROOT DEST: the sha256 of the files of a list of `p PATH...`: one line for each, in order, `-` if it can not be read or is no
# regular file; at last a line `end`.
muster_hash() {
    m_open "$1"
    m_temp
    m_save_list "$m_temp_dir/list"
    m_destination "$2"
    m_hash_list
}

m_hash_list() {
    m_way_dir='' m_way=ok
    p() { m_hash "$@"; }
    # shellcheck disable=SC1091
    . "$m_temp_dir/list"
    m_ended
    echo end
}

m_hash() {
    if [ "$m_there" = 0 ]; then
        for m_path do echo -; done
        return
    fi
    for m_path do
        shift
        case $m_path in */*) m_dir=${m_path%/*} ;; *) m_dir='' ;; esac
        [ "$m_dir" = "$m_way_dir" ] || m_look_way "$m_dir"
        if [ "$m_way" != ok ] || [ -h "$m_path" ] || [ ! -f "$m_path" ] || [ ! -r "$m_path" ]; then
            echo -
            continue
        fi
        case $m_path in
        # What `sha256sum` prints of these takes no one line, or begins with a backslash.
        - | *\\* | *[[:cntrl:]]*)
            m_text=$(sha256sum <"./$m_path")
            m_text=${m_text%% *}
            echo "${m_text:--}"
            ;;
        *)
            echo s
            set -- "$@" "$m_path"
            ;;
        esac
    done >"$m_temp_dir/marks"
    : >"$m_temp_dir/stats"
    if [ $# -gt 0 ]; then
        sha256sum -- "$@" >"$m_temp_dir/sums" || m_fail 48 "\`$m_dest\` was changed meanwhile"
        cut -c 1-64 <"$m_temp_dir/sums" >"$m_temp_dir/stats"
    fi
    m_merge
}

# Takes the directory where a tree is gathered: m_stage.
m_open_stage() {
    m_word "$1"
    m_word "$2"
    m_gathered=$m_own/shell/$1/in
    m_stage=$m_gathered/$2
}

# muster_stage ROOT KEY VERSION: takes a tar stream with files `t/PATH` and `c/NUMBER`. What was gathered for another version is removed.
muster_stage() {
    m_open "$1"
    m_open_stage "$2" "$3"
    set +f
    for m_entry in "$m_gathered"/*; do
        if [ "$m_entry" != "$m_stage" ]; then rm -rf -- "$m_entry"; fi
    done
    set -f
    m_said=$(mkdir -p -- "$m_stage/t" "$m_stage/c" 2>&1) || m_failed "$m_said" "$m_stage"
    # With the agent's umask, for directories that the stream does not name; the one around them is nobody else's.
    chmod -- "0$(printf '%o' "$((0777 & ~0$m_umask))")" "$m_stage/t"
    umask "$m_umask"
    m_said=$(tar -x -p -o -C "$m_stage" -f - 2>&1) && return
    # The first thing that it said is why, the last only that there was something. What it remarks on is no error.
    while IFS= read -r m_line || [ -n "$m_line" ]; do
        case $m_line in
        '' | *'ime stamp '* | *': Removing leading '*) ;;
        *)
            m_said=$m_line
            break
            ;;
        esac
    done <<END
$m_said
END
    m_failed "$m_said" "$m_stage"
}

# muster_staged ROOT KEY VERSION: which files of a list of `p PATH...` (`t/PATH`, `c/NUMBER`) were gathered; as muster_hash.
muster_staged() {
    m_open "$1"
    m_open_stage "$2" "$3"
    m_temp
    m_save_list "$m_temp_dir/list"
    m_there=0
    m_dest=$m_stage
    if cd -P -- "$m_stage" 2>/dev/null; then m_there=1; fi
    m_hash_list
}

# muster_switch ROOT DEST KEY VERSION: puts what was gathered in place. The list is read twice: at first everything that is to be put is
# made ready and verified, and nothing at DEST is touched; then it is switched. DIR is a directory below DEST, `.` for DEST itself.
#
#   file DIGEST PATH                      a file that was gathered at t/PATH
#   build DIGEST MODE MTIME PATH PART...  a file that is put together: a part is `N`, what was gathered at c/N, or `OFFSET:SIZE:OLDPATH`,
#                                         what is in a file below DEST
#   link PATH TARGET                      a symlink, gathered or not
#   clear DIR NAME...                     what is in the way is removed: files, symlinks, directories that are empty
#   mkd DIR NAME...                       directories are made
#   move DIR NAME...                      t/DIR/NAME is put in DIR; NAME may be a directory with all that is in it, where there is none
#   whole                                 before all others: DEST is not there yet, and all that is made ready becomes DEST at once
#   mode MODE DIR NAME...                 of files or directories
#   restore MODE DIR NAME...              of directories, where they are there still
#   mtime MTIME DIR NAME...
#   stale DIR NAME...                     files and symlinks that are no longer wanted are removed
#   staledir DIR NAME...                  directories likewise, if they are empty
muster_switch() {
    m_open "$1"
    m_open_stage "$3" "$4"
    m_temp
    m_save_list "$m_temp_dir/list"
    m_destination "$2"
    m_top=$m_stage/t
    if [ ! -d "$m_top" ]; then
        m_said=$(mkdir -p -- "$m_top" 2>&1) || m_failed "$m_said" "$m_stage"
        chmod -- "0$(printf '%o' "$((0777 & ~0$m_umask))")" "$m_top"
    fi
    cd -P -- "$m_top" || m_fail 48 "\`$m_top\` can not be entered"
    m_is_put=0 m_is_whole=0
    m_ready
    m_put
    rm -rf -- "$m_gathered"
}

# The first reading, in the directory where the tree is gathered.
m_ready() {
    file() {
        m_is_put=1
        if [ ! -f "$2" ] || [ -h "$2" ]; then m_fail 48 "\`$2\` was not sent"; fi
        case $2 in
        *\\* | *[[:cntrl:]]*)
            m_text=$(sha256sum <"./$2")
            [ "${m_text%% *}" = "$1" ] || m_spoilt "$2"
            ;;
        *) printf '%s  ./%s\n' "$1" "$2" >&8 ;;
        esac
    }
    build() {
        m_parent_of "$4"
        m_path=$4 m_digest=$1 m_mode=$2 m_mtime=$3
        shift 4
        : >"./$m_path"
        m_pieces='' m_count=0
        for m_part do
            case $m_part in
            *:*)
                m_join
                m_take_old "$m_part"
                ;;
            *)
                m_number "$m_part"
                m_pieces="$m_pieces ../c/$m_part" m_count=$((m_count + 1))
                if [ "$m_count" -ge 1000 ]; then m_join; fi
                ;;
            esac
        done
        m_join
        m_dress
    }
    link() {
        m_is_put=1
        [ ! -h "$1" ] || return 0
        m_parent_of "$1"
        m_said=$(ln -s -- "$2" "./$1" 2>&1) || m_failed "$m_said" "$1"
    }
    move() {
        m_dir=$1
        shift
        for m_path do
            if [ ! -e "$m_dir/$m_path" ] && [ ! -h "$m_dir/$m_path" ]; then m_fail 48 "\`$m_dir/$m_path\` was not sent"; fi
        done
    }
    whole() {
        [ "$m_there" = 0 ] || m_fail 48 "\`$m_dest\` is there already"
        m_is_whole=1
    }
    clear() { :; }
    mkd() {
        [ "$m_is_whole" = 1 ] || return 0
        m_dir=$1
        shift
        for m_path do
            shift
            set -- "$@" "./$m_dir/$m_path"
        done
        m_said=$(umask "$m_umask" && mkdir -p -- "$@" 2>&1) || m_failed "$m_said" "$m_dir"
    }
    mode() { :; }
    restore() { :; }
    mtime() { :; }
    stale() { :; }
    staledir() { :; }
    exec 8>"$m_temp_dir/sums"
    # shellcheck disable=SC1091
    . "$m_temp_dir/list"
    exec 8>&-
    m_ended
    if [ -s "$m_temp_dir/sums" ] && ! sha256sum -c "$m_temp_dir/sums" >"$m_temp_dir/said" 2>/dev/null; then
        # What is not as it should be is sent again the next time.
        while IFS= read -r m_line; do
            case $m_line in
            *': OK') ;;
            *': FAILED'*)
                m_spoilt "${m_line%': FAILED'*}"
                ;;
            esac
        done <"$m_temp_dir/said"
        m_fail 48 'what was sent can not be verified'
    fi
    # Else a file could be at its place after a crash, and its content not.
    if [ "$m_is_put" = 1 ]; then m_sync_all "$m_top"; fi
}

m_spoilt() {
    rm -f -- "./$1"
    m_fail 48 "\`$1\` is not what was sent"
}

m_parent_of() {
    case $1 in */*) m_dir=${1%/*} ;; *) return 0 ;; esac
    [ -d "$m_dir" ] && return
    m_said=$(umask "$m_umask" && mkdir -p -- "./$m_dir" 2>&1) || m_failed "$m_said" "$m_dir"
}

m_join() {
    [ "$m_count" -gt 0 ] || return 0
    # shellcheck disable=SC2086
    m_said=$(cat -- $m_pieces 2>&1 >>"./$m_path") || m_failed "$m_said" "$m_path"
    m_pieces='' m_count=0
}

# Adds to a file a part of one that is at DEST: `OFFSET:SIZE:OLDPATH`. What it holds is verified with the whole.
m_take_old() {
    m_from=${1%%:*}
    m_text=${1#*:}
    m_size=${m_text%%:*}
    m_text=${m_text#*:}
    m_number "$m_from"
    m_number "$m_size"
    case $m_text in */*) m_dir=${m_text%/*} ;; *) m_dir=. ;; esac
    (
        m_enter "$m_dir"
        m_old=./${m_text##*/}
        m_said=$({
            if [ "$m_from" = 0 ]; then
                head -c "$m_size" -- "$m_old"
            else
                # It is ended by the other when that has enough.
                tail -c "+$((m_from + 1))" -- "$m_old" 2>/dev/null | head -c "$m_size"
            fi
        } 2>&1 >>"$m_top/$m_path") || m_failed "$m_said" "$m_dest/$m_text"
    ) || exit $?
}

# Gives a file that was made here its mode and time, and has it verified.
m_dress() {
    m_octal "$m_mode"
    m_said=$(chmod -- "$m_mode" "./$m_path" 2>&1 && touch -c -d "@$m_mtime" -- "./$m_path" 2>&1) || m_failed "$m_said" "$m_path"
    file "$m_digest" "$m_path"
}

# The second reading, each call in the directory that it is for.
m_put() {
    file() { :; }
    build() { :; }
    link() { :; }
    clear() {
        m_enter "$1"
        shift
        for m_path do
            m_not_own "$m_path"
            if [ -d "./$m_path" ] && [ ! -h "./$m_path" ]; then
                m_said=$(rmdir -- "./$m_path" 2>&1) || m_failed "$m_said" "$PWD/$m_path"
            elif [ -e "./$m_path" ] || [ -h "./$m_path" ]; then
                m_said=$(rm -f -- "./$m_path" 2>&1) || m_failed "$m_said" "$PWD/$m_path"
            fi
        done
    }
    mkd() {
        [ "$m_is_whole" = 0 ] || return 0
        m_enter "$1"
        shift
        m_not_own "$@"
        m_said=$(umask "$m_umask" && mkdir -- "$@" 2>&1) || m_failed "$m_said" "$PWD"
    }
    move() {
        [ "$m_is_whole" = 0 ] || return 0
        m_enter "$1"
        m_dir=$1
        shift
        m_not_own "$@"
        # The directory that was entered, and not what leads there now.
        for m_path do
            shift
            set -- "$@" "$m_top/$m_dir/$m_path"
        done
        m_said=$(mv -f -- "$@" ./ 2>&1) || m_failed "$m_said" "$PWD"
    }
    whole() {
        cd -P -- "$m_root/" || m_fail 48 "\`$m_root\` can not be entered"
        m_want=$m_root
        case $m_below in */*) m_text=${m_below%/*} ;; *) m_text= ;; esac
        IFS=/
        for m_part in $m_text; do
            IFS=' 	
'
            m_want=$m_want/$m_part
            if [ ! -d "./$m_part" ]; then
                m_said=$(umask "$m_umask" && mkdir -- "./$m_part" 2>&1) || [ -d "./$m_part" ] || m_failed "$m_said" "$m_want"
            fi
            cd -P -- "./$m_part" 2>/dev/null || m_fail 48 "\`$m_want\` can not be entered"
            m_where
            [ "$PWD" = "$m_want" ] || m_fail 45 "\`$m_want\` is reached by a symlink"
        done
        IFS=' 	
'
        m_name=${m_dest##*/}
        if [ -e "./$m_name" ] || [ -h "./$m_name" ]; then m_fail 48 "\`$m_dest\` is there already"; fi
        m_said=$(m_rename "$m_top" "./$m_name") || m_failed "$m_said" "$m_dest"
    }
    mode() {
        m_octal "$1"
        m_mode=$1
        m_enter "$2"
        shift 2
        m_not_own "$@"
        for m_path do
            # It would be set where the symlink leads.
            [ ! -h "./$m_path" ] || m_meanwhile
        done
        if m_is_safe; then
            m_said=$(chmod -- "$m_mode" "$@" 2>&1) || m_failed "$m_said" "$PWD"
            return 0
        fi
        for m_path do
            m_set_mode || m_fail "$?" "\`$PWD/$m_path\`: its mode can not be set: it was changed by somebody else meanwhile, or can not be opened"
        done
    }
    restore() {
        m_octal "$1"
        m_mode=$1
        [ -d "$m_dest/$2/" ] || return 0
        m_enter "$2"
        shift 2
        m_not_own "$@"
        for m_path do
            if [ -d "./$m_path" ] && [ ! -h "./$m_path" ]; then m_set_mode; fi
        done
    }
    mtime() {
        m_mtime=$1
        m_enter "$2"
        shift 2
        m_not_own "$@"
        # Of a symlink itself, never where it leads.
        for m_path do
            shift
            set -- "$@" "./$m_path"
        done
        m_said=$(touch -c -h -d "@$m_mtime" -- "$@" 2>&1) || m_failed "$m_said" "$PWD"
    }
    stale() {
        m_enter "$1"
        shift
        m_not_own "$@"
        m_said=$(rm -f -- "$@" 2>&1) || m_failed "$m_said" "$PWD"
    }
    staledir() {
        m_enter "$1"
        shift
        m_not_own "$@"
        for m_path do
            # What somebody else put in it stays.
            if [ -d "./$m_path" ] && [ ! -h "./$m_path" ]; then rmdir -- "./$m_path" 2>/dev/null; fi
        done
    }
    m_whole=0
    # shellcheck disable=SC1091
    . "$m_temp_dir/list"
    m_ended
    m_sync_all "$m_dest"
}

# Enters a directory below the destination; no symlink leads there.
m_enter() {
    m_want=$m_dest
    case $1 in .) ;; *) m_want=$m_dest/$1 ;; esac
    if [ ! -d "$m_dest/" ] && [ "$m_want" = "$m_dest" ]; then
        m_said=$(umask "$m_umask" && mkdir -p -- "$m_dest" 2>&1) || m_failed "$m_said" "$m_dest"
    fi
    cd -P -- "$m_want/" 2>/dev/null || m_fail 48 "\`$m_want\` can not be entered"
    m_where
    [ "${PWD%/}" = "$m_want" ] || m_fail 45 "\`$m_want\` is reached by a symlink"
    if m_is_own "$PWD"; then m_fail 45 "\`$m_want\` is the agent's own"; fi
}

m_meanwhile() {
    m_fail 48 "\`$PWD/$m_path\` was changed by somebody else meanwhile"
}

# Whether nobody else can put something into the working directory.
m_is_safe() {
    m_text=$(stat -c '%u %a' .) || return 1
    case ${m_text% *} in 0 | "$(id -u)") ;; *) return 1 ;; esac
    [ "$((0${m_text#* } & 022))" -eq 0 ]
}

# Sets the mode of a file or directory that somebody else may put a symlink in the place of: of what is held open, after a look at what
# it is.
m_set_mode() {
    # A pipe would be waited for.
    [ -f "./$m_path" ] || [ -d "./$m_path" ] || return 48
    {
        m_text=$(readlink /proc/self/fd/9 && printf x)
        [ "${m_text%"${m_nl}x"}" = "${PWD%/}/$m_path" ] || return 48
        chmod -- "$m_mode" /proc/self/fd/9 2>/dev/null || return 45
    } 2>/dev/null 9<"./$m_path" || return 45
}

m_not_own() {
    [ "${PWD%/}" = "$m_root" ] || return 0
    for m_path do
        [ "$m_path" != .muster ] || m_fail 45 "\`$m_own\` is the agent's own"
    done
}

# Brings a file system to the disk, as far as this machine can.
m_sync_all() {
    sync -f -- "$1" 2>/dev/null || sync 2>/dev/null || :
}

# --- the ledger: what Muster put at a destination, a text of the server's ---

m_open_ledger() {
    m_word "$1"
    m_ledger=$m_own/shell/$1
    m_said=$(mkdir -p -- "$m_ledger" 2>&1) || m_failed "$m_said" "$m_ledger"
}

m_count_begun() {
    m_count=0
    while [ -f "$m_ledger/begun.$((m_count + 1))" ]; do m_count=$((m_count + 1)); done
}

# muster_ledger_read ROOT KEY: prints `settled BYTES` and so many bytes, if there is one, then the same with `begun` for each that was begun
# and not settled, the oldest first; at last `end`.
muster_ledger_read() {
    m_open "$1"
    m_open_ledger "$2"
    if [ -f "$m_ledger/settled" ]; then m_print_text settled "$m_ledger/settled"; fi
    m_count_begun
    m_part=1
    while [ "$m_part" -le "$m_count" ]; do
        m_print_text begun "$m_ledger/begun.$m_part"
        m_part=$((m_part + 1))
    done
    echo end
}

m_print_text() {
    printf '%s %s\n' "$1" "$(stat -c %s -- "$2")"
    cat -- "$2" || m_fail 48 "\`$2\` can not be read"
}

# muster_ledger_begin ROOT KEY SHA256: standard input is written down as begun, after what was begun before and not settled.
muster_ledger_begin() {
    m_open "$1"
    m_open_ledger "$2"
    m_count_begun
    m_new=$m_ledger/new
    m_said=$(cat 2>&1 >"$m_new") || m_failed "$m_said" "$m_new"
    m_text=$(sha256sum <"$m_new")
    [ "${m_text%% *}" = "$3" ] || m_fail 48 'the input was cut off'
    if [ "$m_count" -gt 0 ]; then
        m_text=$(sha256sum <"$m_ledger/begun.$m_count")
        if [ "${m_text%% *}" = "$3" ]; then
            rm -f -- "$m_new"
            return
        fi
    fi
    m_sync "$m_new"
    m_said=$(mv -f -- "$m_new" "$m_ledger/begun.$((m_count + 1))" 2>&1) || m_failed "$m_said" "$m_ledger"
    m_sync "$m_ledger"
}

# muster_ledger_settle ROOT KEY: what was begun last becomes what is settled.
muster_ledger_settle() {
    m_open "$1"
    m_open_ledger "$2"
    m_count_begun
    [ "$m_count" -gt 0 ] || m_fail 46 'nothing was begun'
    m_said=$(mv -f -- "$m_ledger/begun.$m_count" "$m_ledger/settled" 2>&1) || m_failed "$m_said" "$m_ledger"
    # From the newest on: without a gap, whatever ends this.
    while [ "$m_count" -gt 1 ]; do
        m_count=$((m_count - 1))
        rm -f -- "$m_ledger/begun.$m_count"
    done
    m_sync "$m_ledger"
}

# --- what is launched ---

# What keeps a program running; the text of a shell of its own. Its parameters: its directory, the root, where to start, the umask, the
# child's text, the agent's own directory.
# shellcheck disable=SC2016
m_supervisor='
set -fu
umask 077
LC_ALL=C
muster_launch=$1 muster_root=$2 muster_dir=$3 muster_umask=$4 muster_child=$5 muster_own=$6
muster_now() {
    read -r muster_text muster_rest </proc/uptime
    # In hundredths of a second; without the 1 they could be taken for an octal number.
    muster_time=$((${muster_text%.*} * 100 + 1${muster_text#*.} - 100))
}
muster_note() {
    read -r muster_self muster_rest </proc/self/stat
    read -r muster_text </proc/self/stat
    set -- ${muster_text##*") "}
    shift 19
    printf "%s %s\n" "$muster_self" "$1" >"$muster_launch/supervisor"
}
muster_start() {
    if command -v setsid >/dev/null 2>&1; then set -- setsid sh; else set -- sh; fi
    (exec 2>&1 <"$muster_launch/input" && exec "$@" -c "$muster_child" sh "$muster_launch/why" "$muster_launch/program" \
        "$muster_launch/stop" "$muster_launch/list" keep "$muster_root" "$muster_dir" "$muster_umask")
}
muster_keep() {
    muster_note
    muster_pause=1 muster_restarts=0
    while [ -d "$muster_launch" ] && [ ! -e "$muster_launch/stop" ]; do
        muster_now
        muster_began=$muster_time
        printf "running %s\n" "$muster_restarts" >"$muster_launch/state"
        muster_start
        muster_status=$?
        # What it left behind in its group.
        read -r muster_program muster_rest <"$muster_launch/program" && kill -KILL "-$muster_program"
        if [ -e "$muster_launch/why" ]; then
            # Who waits for the first start tells of it.
            [ -e "$muster_launch/answered" ] || [ "$muster_restarts" -gt 0 ] || return
            muster_status=127
            rm -f -- "$muster_launch/why"
        fi
        muster_now
        [ "$((muster_time - muster_began))" -lt 6000 ] || muster_pause=1
        printf "exited %s %s %s\n" "$muster_status" "$muster_restarts" "$((muster_time + muster_pause * 100))" >"$muster_launch/state"
        sleep "$muster_pause" >/dev/null
        while [ -e "$muster_own/held" ]; do sleep 1 >/dev/null; done
        muster_pause=$((muster_pause * 2))
        [ "$muster_pause" -le 60 ] || muster_pause=60
        muster_restarts=$((muster_restarts + 1))
    done 2>/dev/null
}
# Keeps 16 MiB of what is written, and as much of what came before.
muster_log() {
    muster_file=$muster_own/launched.log muster_size=-1
    while :; do
        muster_was=$muster_size
        # The block is written as it comes. Room is left for 16 whole ones.
        dd bs=65536 count=16 >>"$muster_file"
        muster_status=$?
        muster_size=$(stat -c %s -- "$muster_file")
        if [ "$muster_status" -ne 0 ] || [ -z "$muster_size" ]; then
            # The disk is full, say. The program is not to be stopped by that; some of what it writes is lost.
            [ "$(dd bs=65536 count=1 | wc -c)" -gt 0 ] || return
            muster_size=-1
            sleep 1
        elif [ "$muster_size" = "$muster_was" ]; then
            return
        elif [ "$muster_size" -gt 15728640 ]; then
            mv -f -- "$muster_file" "$muster_file.1"
            muster_size=0
        fi
    done
}
muster_keep | muster_log >/dev/null 2>&1
'

# muster_launch ID ROOT DIR: ends what was launched, starts the program of the input and keeps it running.
muster_launch() {
    muster_begin "$2" "$1"
    m_start_dir "$3"
    m_save_program "$m_step"
    m_stop_launched "$m_root"
    rm -f -- "$m_own/held"
    m_launch=$m_own/launch/$1
    m_said=$(mkdir -p -- "$m_launch" 2>&1 && mv -f -- "$m_step/list" "$m_step/input" "$m_launch/" 2>&1) || m_failed "$m_said" "$m_launch"
    m_read_boot
    printf '%s\n' "$m_boot" >"$m_launch/boot" || m_fail 48 "\`$m_launch\` can not be written"
    (
        # The shell says here how the one between was killed; it does so only where it goes on afterwards.
        exec 7>/dev/null 2>&7
        # Not in the background: a shell without job control would have it ignore SIGINT for ever. The shell between is killed instead.
        # shellcheck disable=SC2016
        m_in_session '"$@" </dev/null >/dev/null 2>&1 | kill -KILL "$$"' sh "$(command -v setsid || command -v env)" sh -c \
            "$m_supervisor" sh "$m_launch" "$m_lex" "$m_dir" "$m_umask" "$m_child" "$m_own" </dev/null >/dev/null
        :
    )
    m_tries=0
    while [ ! -e "$m_launch/why" ] && [ ! -e "$m_launch/why.checked" ]; do
        m_tries=$((m_tries + 1))
        if [ "$m_tries" -gt 100 ]; then
            m_stop_launched "$m_root"
            m_fail 48 'the program did not start'
        fi
        m_nap
    done
    # What only the kernel finds out, it has found out by then.
    m_nap
    # What fails from now on, the supervisor tries again.
    : >"$m_launch/answered"
    if m_said=$(cat -- "$m_launch/why" 2>/dev/null) && [ -n "$m_said" ]; then
        m_stop_launched "$m_root"
        m_number "${m_said%% *}"
        m_fail "${m_said%% *}" "${m_said#* }"
    fi
}

# muster_stop ROOT: ends what was launched. Prints `yes` if it ran, else `no`.
muster_stop() {
    m_open "$1"
    m_stop_launched "$m_root"
    echo "$m_ran"
}

# muster_launched ROOT: prints `nothing`, `running PID RESTARTS` or `exited STATUS RESTARTS AGAIN_IN_MS`.
muster_launched() {
    m_open "$1"
    set +f
    for m_launch in "$m_own"/launch/*; do
        set -f
        [ -d "$m_launch" ] || break
        m_tries=0 m_state_word=''
        # It is just being written if it is empty.
        while [ -z "$m_state_word" ] && [ "$m_tries" -lt 5 ]; do
            read -r m_state_word m_one m_two m_three 2>/dev/null <"$m_launch/state" || m_nap
            m_tries=$((m_tries + 1))
        done
        case $m_state_word in
        running)
            m_alive "$m_launch/program" || break
            printf 'running %s %s\n' "$m_found" "$m_one"
            return
            ;;
        exited)
            m_alive "$m_launch/supervisor" || break
            read -r m_text m_line </proc/uptime
            m_due=$(((m_three - (${m_text%.*} * 100 + 1${m_text#*.} - 100)) * 10))
            [ "$m_due" -gt 0 ] || m_due=0
            printf 'exited %s %s %s\n' "$m_one" "$m_two" "$m_due"
            return
            ;;
        esac
    done
    set -f
    echo nothing
}

# muster_hold ROOT: what was launched is not started again when it ends, until muster_resume or muster_launch.
muster_hold() {
    m_open "$1"
    : >"$m_own/held" || m_fail 48 "\`$m_own/held\` can not be written"
}

# muster_resume ROOT
muster_resume() {
    m_open "$1"
    rm -f -- "$m_own/held"
}
