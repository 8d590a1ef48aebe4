package platform.authz_test

import data.platform.authz

admin := {"sub": "root", "roles": ["platform_admin"]}

member := {"sub": "ann", "tenant": "acme", "roles": "reader support", "project": "billing"}

request(claims, method, path) := {"claims": claims, "method": method, "path": path}

test_admins_read_and_write_every_policy if {
	every method in ["GET", "PUT", "PATCH", "DELETE", "POST"] {
		every policy in ["platform", "billing", "web-shop", "not-there-yet"] {
			authz.allow with input as request(admin, method, ["policies", policy])
		}
	}
}

test_admins_use_the_rest_of_the_api if {
	authz.allow with input as request(admin, "POST", ["admin", "sync"])
	authz.allow with input as request(admin, "GET", ["history"])
}

test_members_read_their_own_project if {
	authz.allow with input as request(member, "GET", ["policies", "billing"])
	authz.allow with input as request(member, "GET", ["policies", "billing", "versions"])
	authz.allow with input as request(member, "POST", ["policies", "billing:validate"])
	authz.allow with input as request(member, "GET", ["policies"])
}

test_members_of_several_projects_read_each if {
	both := object.union(member, {"project": ["billing", "orders"]})
	authz.allow with input as request(both, "GET", ["policies", "billing"])
	authz.allow with input as request(both, "GET", ["policies", "orders"])
	not authz.allow with input as request(both, "GET", ["policies", "reports"])
}

test_members_write_no_policy if {
	every method in ["PUT", "PATCH", "DELETE", "POST"] {
		not authz.allow with input as request(member, method, ["policies", "billing"])
	}
	not authz.allow with input as request(member, "POST", ["policies", "billing:rollback"])
}

test_members_read_neither_the_platform_nor_another_project if {
	not authz.allow with input as request(member, "GET", ["policies", "platform"])
	not authz.allow with input as request(member, "GET", ["policies", "orders"])
}

test_members_use_only_their_own_services if {
	authz.allow with input as request(member, "POST", ["services", "billing", "refunds"])
	not authz.allow with input as request(member, "POST", ["services", "orders", "orders"])
}

test_probes_and_dashboards_need_no_role if {
	every path in [["healthz"], ["readyz"], ["status"], ["fleet"], ["openapi.json"], ["docs"], ["ui", "app.js"], []] {
		authz.allow with input as request({}, "GET", path)
		not authz.allow with input as request({}, "POST", path)
	}
	authz.allow with input as {"method": "GET", "path": ["healthz"]}
}

test_members_follow_what_is_live_and_what_happened if {
	every path in [
		["events"],
		["fleet"],
		["history"],
		["policies", "billing", "diff"],
		["policies", "billing", "versions", "1"],
		["status"],
		["status", "policies"],
		["status", "policies", "billing"],
		["trace"],
		["ui", "policies", "projects", "billing"],
		["versions"],
	] {
		authz.allow with input as request(member, "GET", path)
		authz.allow with input as request(member, "HEAD", path)
	}
}

test_members_neither_administer_nor_read_the_audit_trail if {
	not authz.allow with input as request(member, "POST", ["admin", "sync"])
	not authz.allow with input as request(member, "GET", ["audit"])
}

test_a_suspended_tenant_gets_nothing if {
	suspended := {"sub": "eve", "tenant": "acme-trial", "roles": ["platform_admin"], "project": "billing"}
	not authz.allow with input as request(suspended, "GET", ["policies", "billing"])
	not authz.allow with input as request(suspended, "GET", ["status"])
}

test_a_frozen_project_is_read_but_not_written if {
	authz.allow with input as request(admin, "GET", ["policies", "orders"])
		with data.platform.frozen_projects as ["orders"]
	not authz.allow with input as request(admin, "PUT", ["policies", "orders"])
		with data.platform.frozen_projects as ["orders"]
	not authz.allow with input as request(admin, "POST", ["policies", "orders:rollback"])
		with data.platform.frozen_projects as ["orders"]
	authz.allow with input as request(admin, "PUT", ["policies", "billing"])
		with data.platform.frozen_projects as ["orders"]
}

test_every_question_has_a_boolean_answer if {
	every question in [{}, {"claims": null}, {"path": []}, {"path": "policies"}, {"method": 7, "claims": {"roles": {}}}] {
		authz.allow == false with input as question
	}
}
