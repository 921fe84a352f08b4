# Completion of molt(1) for bash: source it, or install it as bash-completion's file for molt.
#
# Verbs and options come from `molt help`, so they are those of the program that is completed; pids,
# modules, hooks and attributes from the processes that the line selects so far.
# shellcheck shell=bash

_molt_lines() { # the words of `molt "$@"`, one a line; nothing if it fails
  command "${COMP_WORDS[0]}" --timeout 1 "$@" 2>/dev/null
}

_molt_verbs() {
  _molt_lines help | sed -n '/^Verbs/,/^$/s/^  \([a-z][a-z ]*[a-z]\)  .*/\1/p'
}

_molt_options() { # VERB: its own and everybody's
  { _molt_lines help; _molt_lines help "$@"; } | sed -n 's/^  \(-., \)\?\(--[a-z-]*\).*/\1\2/p' |
    tr -d ,
}

_molt_fields() { # KEY VERB...: values of KEY in the verb's JSON
  local key=$1
  shift
  _molt_lines "$@" --json | sed -n "s/^ *\"$key\": \"\\?\\([^\",]*\\)\"\\?,\\?\$/\\1/p"
}

_molt_files() {
  compopt -o filenames 2>/dev/null # fails only in tests
  mapfile -t COMPREPLY < <(compgen -f -- "$1")
}

_molt() {
  local current=${COMP_WORDS[COMP_CWORD]} previous=${COMP_WORDS[COMP_CWORD - 1]}
  local word verb='' nth=0 at selection=()
  COMPREPLY=()

  # What stands before the cursor: which processes, which verb, how many arguments.
  for ((at = 1; at < COMP_CWORD; ++at)); do
    word=${COMP_WORDS[at]}
    case $word in
      -p | --pid | --exe | --name | --tree)
        selection+=("$word" "${COMP_WORDS[++at]}")
        ;;
      --all) selection+=(--all) ;;
      --timeout | --for | --since | --every | --diff | --target | --debug | --source | --build-folder | \
        -o | --output | --patch-name | --description | --cve | --signed-off-by | --keep-old | --accept | --leave-out | --beside | --callbacks) ((++at)) ;;
      -*) ;;
      *)
        if [ -z "$verb" ]; then
          verb=$word
        elif [ "$verb" = hook ]; then
          verb="hook $word"
        else
          ((++nth))
        fi
        ;;
    esac
  done

  case $previous in
    -p | --pid | --tree)
      word=$(_molt_fields pid ps)
      ;;
    --name) word=$(_molt_fields comm ps) ;;
    --for) word=$'live\ngone\nfreed\npatched\nunpatched' ;;
    --timeout | --since | --every | --patch-name | --description | --cve | --signed-off-by | --keep-old | --accept | --leave-out | --beside) return ;;
    --exe | --diff | --target | --debug | --source | --build-folder | -o | --output | --callbacks)
      _molt_files "$current"
      return
      ;;
    *)
      if [[ $current == -* ]]; then
        # shellcheck disable=SC2086  # "hook list" is two words
        word=$(_molt_options $verb)
      else
        case $verb in
          '') word=$(_molt_verbs | sed 's/ .*//' | sort -u) ;;
          hook) word=$(_molt_verbs | sed -n 's/^hook //p') ;;
          help)
            word=$(_molt_verbs)
            ;;
          unload | wait | audit | blocking)
            word=$(_molt_fields name list "${selection[@]}")
            ;;
          revert | force)
            word=$(_molt_fields name status "${selection[@]}")
            ;;
          info | replace)
            word=$(_molt_fields name list "${selection[@]}")
            _molt_files "$current"
            ;;
          'hook order')
            if [ "$nth" = 0 ]; then
              word=$(_molt_fields name hook list "${selection[@]}")
            else
              word=$(_molt_fields name list "${selection[@]}")
            fi
            ;;
          get | set | tree) word=$(_molt_fields path tree "${selection[@]}") ;;
          doctor) word=$(cd /proc && printf '%s\n' [1-9]*) ;;
          run | build)
            mapfile -t COMPREPLY < <(compgen -c -- "$current")
            return
            ;;
          load | check | apply)
            _molt_files "$current"
            return
            ;;
          *) return ;;
        esac
      fi
      ;;
  esac
  # Not compgen -W: it would expand the words, and they may be names that others have chosen.
  while read -r word; do
    [[ -z $word || $word != "$current"* ]] || COMPREPLY+=("$word")
  done <<<"$word"
}

complete -F _molt molt
