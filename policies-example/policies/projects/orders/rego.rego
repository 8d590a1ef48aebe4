# METADATA
# title: Orders
# description: |
#   Who may see an order and move it to another status. A desk looks after some countries (desks in data.json), an
#   order moves only along the arrows of transitions, and some arrows are for leads.
#   input: {"claims", "action": "view" | "move", "order": {"country", "status"}, "to": "shipped"}
package projects.orders.authz

import data.platform.authz as platform
import data.projects.orders.desks
import data.projects.orders.lead_only
import data.projects.orders.transitions

default allow := false

allow if {
	input.action == "view"
	in_region
}

allow if {
	input.action == "view"
	platform.is_admin
}

allow if {
	input.action == "move"
	in_region
	input.to in next
	not needs_lead
}

allow if {
	input.action == "move"
	in_region
	input.to in next
	"orders_lead" in platform.roles
}

# What the screen offers: the statuses that this caller may choose for this order.
choices contains status if {
	some status in next
	allow with input as object.union(input, {"action": "move", "to": status})
}

next := transitions[input.order.status]

needs_lead if input.to in lead_only

# A country that the platform does not serve is nobody's region, whatever a desk's list says.
in_region if {
	"orders" in platform.projects
	input.order.country in data.platform.countries
	some role in platform.roles
	input.order.country in desks[role]
}
