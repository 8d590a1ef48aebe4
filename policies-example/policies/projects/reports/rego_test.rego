package projects.reports.authz_test

import data.projects.reports.authz

at(text) := time.parse_rfc3339_ns(text)

question(role, action, class) := {
	"claims": {"sub": "fay", "roles": [role], "project": "reports"},
	"action": action,
	"report": {"class": class, "country": "DE"},
}

test_each_class_has_its_roles if {
	noon := at("2026-12-01T12:00:00Z")
	authz.allow with input as question("finance", "open", "financial") with time.now_ns as noon
	authz.allow with input as question("analyst", "open", "sales") with time.now_ns as noon
	not authz.allow with input as question("analyst", "open", "financial") with time.now_ns as noon
	not authz.allow with input as question("finance", "open", "unheard-of") with time.now_ns as noon
}

test_financial_figures_are_closed_from_the_first_to_the_last_second if {
	figures := question("finance", "open", "financial")
	authz.allow with input as figures with time.now_ns as at("2027-01-14T23:59:59Z")
	not authz.allow with input as figures with time.now_ns as at("2027-01-15T00:00:00Z")
	not authz.allow with input as figures with time.now_ns as at("2027-02-12T05:59:59Z")
	authz.allow with input as figures with time.now_ns as at("2027-02-12T06:00:00Z")
}

test_a_quiet_period_does_not_close_sales if {
	authz.allow with input as question("analyst", "open", "sales") with time.now_ns as at("2027-01-20T12:00:00Z")
}

test_a_period_that_cannot_be_read_keeps_figures_shut_and_sales_open if {
	noon := at("2026-12-01T12:00:00Z")
	broken := [{"name": "typing error", "from": "2027-13-01", "until": "2027-14-01"}]
	not authz.allow with input as question("finance", "open", "financial")
		with data.projects.reports.quiet_periods as broken
		with time.now_ns as noon
	authz.allow with input as question("finance", "open", "sales")
		with data.projects.reports.quiet_periods as broken
		with time.now_ns as noon
}

test_exports_run_at_night if {
	export := question("analyst", "export", "sales")
	authz.allow with input as export with time.now_ns as at("2026-12-01T20:00:00Z")
	authz.allow with input as export with time.now_ns as at("2026-12-02T05:59:59Z")
	not authz.allow with input as export with time.now_ns as at("2026-12-02T06:00:00Z")
	not authz.allow with input as export with time.now_ns as at("2026-12-01T19:59:59Z")
}

test_only_members_open_reports_of_served_countries if {
	stranger := {"claims": {"sub": "eve", "roles": ["finance"], "project": "billing"}}
	abroad := {"report": {"class": "sales", "country": "XX"}}
	every change in [stranger, abroad] {
		not authz.allow with input as object.union(question("finance", "open", "sales"), change)
			with time.now_ns as at("2026-12-01T12:00:00Z")
	}
}

test_nothing_is_allowed_without_input if {
	authz.allow == false with input as {}
}
