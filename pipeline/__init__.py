"""How work moves over machines: plan, ledger, engines, CLI. Imports maskmill; nothing in maskmill imports it."""
