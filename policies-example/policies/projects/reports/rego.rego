# METADATA
# title: Reports
# description: |
#   Who may open a report, and when. Financial figures stay closed over a quiet period; exports, which load the
#   database, run at night. Times are UTC, so that daylight saving moves no rule.
#   input: {"claims", "action": "open" | "export", "report": {"class", "country"}}
package projects.reports.authz

import data.platform.authz as platform
import data.projects.reports.classes
import data.projects.reports.export_hours
import data.projects.reports.quiet_periods

default allow := false

allow if {
	input.action == "open"
	cleared
	open_now
}

allow if {
	input.action == "export"
	cleared
	open_now
	at_night
}

cleared if {
	"reports" in platform.projects
	input.report.country in data.platform.countries
	some role in classes[input.report.class].roles
	role in platform.roles
}

open_now if classes[input.report.class].quiet == false

# Fails closed: a class that does not say counts as quiet, and a period that cannot be read never ends.
open_now if {
	every period in quiet_periods {
		outside(period)
	}
}

# A quiet period begins with "from" and ends just before "until".
outside(period) if time.now_ns() < time.parse_rfc3339_ns(period.from)

outside(period) if time.now_ns() >= time.parse_rfc3339_ns(period.until)

# The window crosses midnight: it is from "from" on, or before "until".
at_night if hour >= export_hours.from

at_night if hour < export_hours.until

hour := time.clock(time.now_ns())[0]
