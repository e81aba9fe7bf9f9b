"""The probe within the training loops of other libraries, of which this imports none.

`integrations.lightning.ProbeCallback`, `integrations.transformers.ProbeCallback` and
`integrations.ignite.ProbeHandler` each need their library, and the extra of its name brings it.
"""
