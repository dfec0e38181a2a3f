#!/usr/bin/env bash
# Builds the fuzz targets with the compiler that builds everything else, and runs each for some seconds. Neither a nightly compiler nor
# cargo-fuzz is needed: libFuzzer comes with the crate libfuzzer-sys, and its instrumentation is a pass of LLVM. The parsers are safe code, so
# no sanitizer is missed.
#
# What a run finds new stays below target/fuzz; an input that crashes is kept there as crash-*.
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=${1:?usage: hack/fuzz.sh <seconds for each target> [target...]}
shift
host=$(rustc -vV | sed -n 's/^host: //p')
# The passes that cargo-fuzz asks for.
export RUSTFLAGS="--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares"
# With --target build scripts and macros are left as they are.
cargo build --locked --release --manifest-path fuzz/Cargo.toml --target-dir target/fuzz --target "$host"
[ $# -gt 0 ] || set -- $(basename -s .rs fuzz/fuzz_targets/*.rs)
one() {
    local target=$1 work=target/fuzz/$1
    mkdir -p "$work/corpus"
    if ! "target/fuzz/$host/release/$target" -max_total_time="$seconds" -timeout=10 -rss_limit_mb=1024 -print_final_stats=1 \
        -artifact_prefix="$work/" "$work/corpus" "fuzz/corpus/$target" >"$work/log" 2>&1; then
        tail -n 40 "$work/log"
        echo "fuzz $target: failed; the input is in $work" >&2
        return 1
    fi
    awk -v target="$target" '/number_of_executed_units/ { runs = $2 } /cov: / { for (i = 1; i < NF; i++) if ($i == "cov:") edges = $(i + 1) }
        END { if (!runs || edges < 10) { print "fuzz " target ": no coverage"; exit 1 } printf "fuzz %-16s %9d inputs, %4d edges\n", target, runs, edges }' "$work/log"
}
export -f one
export host seconds
# One target for each processor at a time; one that fails makes xargs fail when the others are through.
printf '%s\n' "$@" | xargs -n 1 -P "$(nproc)" bash -euo pipefail -c 'one "$0"'
