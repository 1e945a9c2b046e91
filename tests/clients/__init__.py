"""Applications of other people, run against the gateway: pipecat as it is installed, the others as re-creations.

A re-creation is not the application. It is what the application does with the protocol, written anew from its public
source or from what is known of it: what it reads and in which type, where it gives up, what it sends, in which pieces,
at which pace, how it ends. The mind behind it (recognition, model, synthesis) is the test's. docs/compatibility.md says
for each what it was made from.
"""
