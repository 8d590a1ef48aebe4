"""The way of a question to the shard that answers it: configuration for HAProxy and Envoy, and the router of
`regops dev`. All three keep the rules of `paths`, and one table of questions tests them."""
