# METADATA
# title: Who may send which request
# description: |
#   Decides by the claims of a verified token. The gateway asks before it passes a request on; regops' own API asks
#   before it serves one that its built-in roles allow, so there this policy can only narrow:
#   true (or no answer) lets the request through, false is a 403.
#   input: {"claims": {"sub", "tenant", "roles", "project"}, "method": "GET", "path": ["policies", "billing"]}
package platform.authz

default allow := false

allow if {
	not tenant_suspended
	permitted
}

# Probes, the API's own description, and what tells of the whole: status, fleet, history, versions, traces, events and
# the pages. Of these the API shows each caller only what it may read, and the totals.
permitted if {
	reading
	target[0] in data.platform.open_paths
}

permitted if {
	reading
	target == []
}

permitted if {
	is_admin
	not frozen
}

# The list of policies; the API shows in it only what the caller may read.
permitted if {
	reading
	target == ["policies"]
}

# Members read what lies below their own project, and nothing of another or of the platform.
permitted if {
	reading
	target[0] == "policies"
	target[1] in projects
}

# Members use their own project's services; what they may do there is that project's policy.
permitted if {
	target[0] == "services"
	target[1] in projects
}

is_admin if "platform_admin" in roles

tenant_suspended if input.claims.tenant in data.platform.suspended_tenants

# A project whose policy must not change for now, for example over an audit. Merged commits still go live.
frozen if {
	not reading
	target[0] == "policies"
	target[1] in data.platform.frozen_projects
}

reading if input.method in {"GET", "HEAD"}

# A dry check writes nothing.
reading if {
	input.method == "POST"
	endswith(input.path[count(input.path) - 1], ":validate")
}

# The path without the action that a last segment may name ("billing:validate").
target := [split(segment, ":")[0] | some segment in input.path]

# A token names roles and projects in a list or in one string. Projects use both sets.
roles := as_set(object.get(input, ["claims", "roles"], []))

projects := as_set(object.get(input, ["claims", "project"], []))

as_set(names) := {name | some name in names} if is_array(names)

as_set(names) := {name | some name in split(names, " "); name != ""} if is_string(names)
