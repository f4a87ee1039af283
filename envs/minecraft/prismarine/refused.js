'use strict'
// A request that cannot be carried out for a reason that the caller can correct.
class Refused extends Error {}
module.exports = { Refused }
