"""Programs that measure; each prints ratios within one run, because machines differ and are shared."""
