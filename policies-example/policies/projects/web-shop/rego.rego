# METADATA
# title: Web shop
# description: |
#   What a visitor may do in the shop and what an editor may publish. The project's name has a hyphen, so its part of
#   the package stands in brackets; OPA's path is /v1/data/projects/web-shop/authz all the same.
#   input: {"claims", "action", "basket": {"country", "currency", "total"}, "coupon": "WELCOME", "page": "sale"}
package projects["web-shop"].authz

import data.platform.authz as platform
import data.projects["web-shop"].basket_limits
import data.projects["web-shop"].campaigns
import data.projects["web-shop"].protected_pages

default allow := false

allow if input.action == "browse"

allow if {
	input.action == "checkout"
	deliverable
	input.basket.total <= basket_limits[visitor]
}

allow if {
	input.action == "redeem"
	discount > 0
}

allow if {
	input.action == "publish"
	"web-shop" in platform.projects
	"shop_editor" in platform.roles
	not input.page in protected_pages
}

# Per cent off the basket for the coupon that the visitor typed in.
default discount := 0

discount := campaign.percent if {
	campaign := campaigns[input.coupon]
	campaign.active
	deliverable
	input.basket.total >= campaign.minimum
}

deliverable if {
	is_number(input.basket.total)
	input.basket.total > 0
	input.basket.country in data.platform.countries
	input.basket.currency in data.platform.currencies
}

default visitor := "guest"

visitor := "customer" if input.claims.sub != ""
