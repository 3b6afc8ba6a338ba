"""``make bench``: what bioproxy costs and gains beside what users would use instead, measured in one run, and drawn.

Read `latency` first: a theme is a function that starts contestants, has them take turns, and returns tables.

* `contestants`: what is compared, as values that can be started;
* `stand_in` and `fifteen_lines`: the two of them that are made here;
* `measuring`: turns, medians, and the values that say how much is measured;
* `results`: tables, ``results.json`` and Markdown; `machine`: where it was measured; `plots`: the pictures;
* `latency`, `first_token` (with `llama_side` and `asking`), `scale` (with `scale_streams` and `scale_inside`) and
  `disk`: the themes.

Contestants take turns request by request, in another order each round.  So whatever else the machine does hits all
alike, and ratios between them mean more than the times.  No measurement is dropped, and none is corrected.
"""
