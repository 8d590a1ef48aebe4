# METADATA
# title: Refunds
# description: |
#   Who may pay back how much. The billing service asks /v1/data/projects/billing/authz before it books:
#   "allow" is the decision, "deny" says why not, in words that a support agent can read out.
#   input: {"claims", "action": "refund", "refund": {"amount", "currency", "age_days", "sold_by"}}
package projects.billing.authz

import data.platform.authz as platform
import data.projects.billing.refund_limits

# Days after the payment within which money can be paid back, whatever the role.
refund_window_days := 30

default allow := false

allow if {
	input.action == "read"
	is_member
}

allow if {
	input.action == "refund"
	count(deny) == 0
}

deny contains "the caller is no member of billing" if not is_member

deny contains "the payment's currency is not ours" if not currency_known

deny contains "nobody refunds a sale of their own" if not sold_by_another

deny contains sprintf("refunds end %d days after the payment", [refund_window_days]) if not in_window

deny contains "none of the caller's roles may refund" if not limit

deny contains sprintf("the caller's roles refund amounts up to %v", [limit]) if not within_limit

# Each condition is a rule that says what must hold: a field left out makes it undefined, and that denies.
is_member if "billing" in platform.projects

currency_known if input.refund.currency in data.platform.currencies

sold_by_another if input.refund.sold_by != input.claims.sub

in_window if {
	is_number(input.refund.age_days)
	input.refund.age_days <= refund_window_days
}

# The most generous of the caller's roles counts; undefined where none has a limit.
limit := max({refund_limits[role] | some role in platform.roles})

within_limit if {
	is_number(input.refund.amount)
	input.refund.amount > 0
	input.refund.amount <= limit
}
