"""spiritlevel within other libraries, of which this imports none.

`integrations.lightning.ProbeCallback`, `integrations.transformers.ProbeCallback`,
`integrations.ignite.ProbeHandler` and `integrations.timm.register` each need their library, and the
extra of its name brings it.
"""
