package api

import (
	"github.com/shuntio/shunt/tools/control"
	"github.com/shuntio/shunt/tools/control/config"
)

// kind is what differs between uplinks, networks, ports and so on.
type kind struct {
	kind          control.Kind
	plural, title string
	// config, object and objects are values of the types that PUT takes and GET gives.
	config, object, objects any
	// list returns all objects, or the one with the name, or nil when there is none.
	list func(c *control.Controller, name string) any
	with func(base *config.Config, name string, body []byte) (*config.Config, error)
}

var kinds = []kind{
	{control.KindUplink, "uplinks", "Uplink", config.Uplink{}, Uplink{}, []Uplink{}, func(c *control.Controller, name string) any {
		return objects(c.Config().Uplinks, func(u config.Uplink) string { return u.Name },
			c.Status().Uplinks, func(u control.UplinkStatus) string { return u.Name }, name)
	}, config.WithUplink},
	{control.KindNetwork, "networks", "Network", config.Network{}, Network{}, []Network{}, func(c *control.Controller, name string) any {
		return objects(c.Config().Networks, func(n config.Network) string { return n.Name },
			c.Status().Networks, func(n control.NetworkStatus) string { return n.Name }, name)
	}, config.WithNetwork},
	{control.KindPort, "ports", "Port", config.Port{}, Port{}, []Port{}, func(c *control.Controller, name string) any {
		return objects(c.Config().Ports, func(p config.Port) string { return p.Name },
			c.Status().Ports, func(p control.PortStatus) string { return p.Name }, name)
	}, config.WithPort},
	{control.KindVolumeGroup, "volume-groups", "VolumeGroup", config.VolumeGroup{}, VolumeGroup{}, []VolumeGroup{}, func(c *control.Controller, name string) any {
		return objects(c.Config().VolumeGroups, config.VolumeGroup.ObjectName, nil, func(struct{}) string { return "" }, name)
	}, config.WithVolumeGroup},
	{control.KindVolume, "volumes", "Volume", config.Volume{}, Volume{}, []Volume{}, func(c *control.Controller, name string) any {
		return objects(c.Config().Volumes, config.Volume.ObjectName,
			c.Status().Volumes, func(v control.VolumeStatus) string { return v.Name }, name)
	}, config.WithVolume},
}

// objects joins configuration and status by name.
func objects[C, S any](configs []C, nameOf func(C) string, states []S, stateOf func(S) string, only string) any {
	byName := make(map[string]*S, len(states))
	for i := range states {
		byName[stateOf(states[i])] = &states[i]
	}
	all := []Object[C, S]{}
	for _, c := range configs {
		o := Object[C, S]{c, byName[nameOf(c)]}
		if only != "" && nameOf(c) == only {
			return o
		}
		all = append(all, o)
	}
	if only != "" {
		return nil
	}
	return all
}
