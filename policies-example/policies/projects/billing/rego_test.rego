package projects.billing.authz_test

import data.projects.billing.authz
import data.projects.billing.refund_limits

caller(role) := {"sub": "ann", "roles": [role], "project": "billing"}

# A refund that every role may make, with one field changed.
refund(role, change) := {
	"claims": caller(role),
	"action": "refund",
	"refund": object.union({"amount": 1, "currency": "EUR", "age_days": 1, "sold_by": "bob"}, change),
}

test_each_role_refunds_up_to_its_limit if {
	every role, most in refund_limits {
		authz.allow with input as refund(role, {"amount": most})
		not authz.allow with input as refund(role, {"amount": most + 0.01})
	}
}

test_the_most_generous_role_counts if {
	claims := {"sub": "ann", "roles": ["billing_agent", "billing_manager"], "project": "billing"}
	question := object.union(refund("billing_agent", {"amount": refund_limits.billing_manager}), {"claims": claims})
	authz.allow with input as question
}

test_refunds_end_with_the_window if {
	authz.allow with input as refund("billing_agent", {"age_days": authz.refund_window_days})
	not authz.allow with input as refund("billing_manager", {"age_days": authz.refund_window_days + 1})
}

test_nobody_refunds_a_sale_of_their_own if {
	authz.deny == {"nobody refunds a sale of their own"} with input as refund("billing_manager", {"sold_by": "ann"})
}

test_unknown_currencies_are_denied if {
	authz.deny == {"the payment's currency is not ours"} with input as refund("billing_manager", {"currency": "XXX"})
}

test_amounts_that_are_no_positive_number_are_denied if {
	every amount in [0, -5, "10", null, true] {
		not authz.allow with input as refund("billing_manager", {"amount": amount})
	}
	not authz.allow with input as refund("billing_manager", {"age_days": null})
}

test_other_roles_do_not_refund if {
	not authz.allow with input as refund("reader", {})
	"none of the caller's roles may refund" in authz.deny with input as refund("reader", {})
}

test_only_members_read_and_refund if {
	stranger := {"sub": "eve", "roles": ["billing_manager"], "project": "orders"}
	authz.allow with input as {"claims": caller("reader"), "action": "read"}
	not authz.allow with input as {"claims": stranger, "action": "read"}
	not authz.allow with input as object.union(refund("billing_manager", {}), {"claims": stranger})
}

test_a_field_left_out_denies if {
	every field in ["amount", "currency", "age_days", "sold_by"] {
		whole := refund("billing_manager", {})
		question := object.union(
			object.remove(whole, ["refund"]),
			{"refund": object.remove(whole.refund, [field])},
		)
		not authz.allow with input as question
	}
}

test_nothing_is_allowed_without_input if {
	authz.allow == false with input as {}
}
