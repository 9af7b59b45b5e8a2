"""Speed, memory and scale beside what people would use instead: ratios measured in one run.

python dev/bench                     everything: output/bench/results.json and docs/benchmarks.md
python dev/bench --list              the rows and their goals
python dev/bench --only label_map    one part, or one row such as label_map/C20_512
python dev/bench --quick             toy sizes, seconds: does everything run, are answers equal

A row sets our code beside a peer that answers the same question from the same input. Both run in
one process, in turns; the ratio is that of the medians. A row that counts memory runs each side in
a process of its own. Parts run in child processes whose allocator keeps large buffers ("pinned"),
and once more with glibc's default, where the allocator matters.
"""
