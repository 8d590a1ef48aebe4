package projects["web-shop"].authz_test

import data.projects["web-shop"].authz
import data.projects["web-shop"].basket_limits

basket(total) := {"country": "DE", "currency": "EUR", "total": total}

editor := {"sub": "eda", "roles": ["shop_editor"], "project": "web-shop"}

test_everybody_browses if {
	authz.allow with input as {"action": "browse"}
}

test_guests_check_out_small_baskets if {
	authz.allow with input as {"action": "checkout", "basket": basket(basket_limits.guest)}
	not authz.allow with input as {"action": "checkout", "basket": basket(basket_limits.guest + 1)}
}

test_customers_check_out_larger_ones if {
	question := {"claims": {"sub": "carl"}, "action": "checkout", "basket": basket(basket_limits.guest + 1)}
	authz.allow with input as question
}

test_baskets_go_only_where_the_platform_delivers if {
	every change in [{"country": "XX"}, {"currency": "XXX"}, {"total": 0}, {"total": "5"}, {"total": null}] {
		not authz.allow with input as {"action": "checkout", "basket": object.union(basket(30), change)}
	}
}

test_a_running_campaign_gives_its_discount if {
	authz.discount == 10 with input as {"action": "redeem", "basket": basket(20), "coupon": "WELCOME"}
	authz.allow with input as {"action": "redeem", "basket": basket(20), "coupon": "WELCOME"}
}

test_other_coupons_give_nothing if {
	authz.discount == 0 with input as {"action": "redeem", "basket": basket(19), "coupon": "WELCOME"}
	authz.discount == 0 with input as {"action": "redeem", "basket": basket(90), "coupon": "SUMMER"}
	not authz.allow with input as {"action": "redeem", "basket": basket(90), "coupon": "GUESS"}
}

test_editors_publish_all_but_protected_pages if {
	authz.allow with input as {"claims": editor, "action": "publish", "page": "sale"}
	not authz.allow with input as {"claims": editor, "action": "publish", "page": "terms"}
	not authz.allow with input as {"claims": {"sub": "carl"}, "action": "publish", "page": "sale"}
}
