"""Alert rules, alarms, actions, runs, the outbox, the nightly summary, Prometheus, and the judgement of a model's
state.
"""
