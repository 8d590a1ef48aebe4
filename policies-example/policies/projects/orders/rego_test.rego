package projects.orders.authz_test

import data.projects.orders.authz

agent := {"sub": "ann", "roles": ["orders_dach"], "project": "orders"}

lead := {"sub": "lea", "roles": ["orders_dach", "orders_lead"], "project": "orders"}

order(country, status) := {"country": country, "status": status}

view(claims, country) := {"claims": claims, "action": "view", "order": order(country, "placed")}

move(claims, country, status, to) := {
	"claims": claims,
	"action": "move",
	"order": order(country, status),
	"to": to,
}

test_a_desk_sees_its_own_countries if {
	authz.allow with input as view(agent, "DE")
	not authz.allow with input as view(agent, "FR")
}

test_platform_admins_see_every_order_and_move_none if {
	admin := {"sub": "root", "roles": ["platform_admin"]}
	authz.allow with input as view(admin, "US")
	not authz.allow with input as move(admin, "US", "placed", "paid")
}

test_orders_move_along_the_arrows_only if {
	authz.allow with input as move(agent, "AT", "paid", "packed")
	not authz.allow with input as move(agent, "AT", "placed", "shipped")
	not authz.allow with input as move(agent, "AT", "unheard-of", "paid")
}

test_only_leads_cancel_and_refund if {
	every arrow in [["placed", "cancelled"], ["returned", "refunded"]] {
		authz.allow with input as move(lead, "CH", arrow[0], arrow[1])
		not authz.allow with input as move(agent, "CH", arrow[0], arrow[1])
	}
}

test_a_lead_stays_within_the_region if {
	not authz.allow with input as move(lead, "US", "placed", "cancelled")
}

test_a_country_that_the_platform_left_is_nobodys if {
	not authz.allow with input as view(agent, "DE") with data.platform.countries as ["AT", "CH"]
}

test_the_screen_offers_what_the_caller_may_choose if {
	authz.choices == {"paid"} with input as {"claims": agent, "order": order("DE", "placed")}
	authz.choices == {"paid", "cancelled"} with input as {"claims": lead, "order": order("DE", "placed")}
}

test_members_of_other_projects_are_strangers if {
	not authz.allow with input as view({"sub": "eve", "roles": ["orders_dach"], "project": "billing"}, "DE")
}

test_nothing_is_allowed_without_input if {
	authz.allow == false with input as {}
}
