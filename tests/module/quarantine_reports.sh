#!/bin/bash
# quarantine_reports.sh HOST MODULE WISH REPORT FUNCTION: the sanitizer's report about what HOST does with
# what MODULE has left names the FUNCTION although the module is unloaded; without quarantine it does not.
host=$1 module=$2 wish=$3 report=$4 function=$5
leaks=0
[ "$wish" != leak ] || leaks=1
export ASAN_OPTIONS=detect_leaks=$leaks

told=$("$host" "$module" "$wish" 2>&1)
if [[ $told == *"LeakSanitizer has encountered a fatal error"* ]]; then
  echo "the leak sanitizer needs ptrace, which is forbidden here"
  exit 77
fi
printf '%s\n' "$told"
[[ $told == *"$report"* ]] || { echo "FAILED: no report of: $report"; exit 1; }
[[ $told == *"$function"* ]] || { echo "FAILED: the report does not name $function"; exit 1; }

told=$(MOLT_QUARANTINE=0 "$host" "$module" "$wish" 2>&1)
[[ $told == *"$report"* ]] || { printf '%s\nFAILED: no report without quarantine\n' "$told"; exit 1; }
[[ $told != *"$function"* ]] || {
  printf '%s\nFAILED: named without quarantine too: this test proves nothing\n' "$told"
  exit 1
}
